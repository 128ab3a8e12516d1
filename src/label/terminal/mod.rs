//! Lets one person judge in a terminal. `state` decides what a key does, `view` draws the screen, and the desk assigns
//! tasks and saves votes.

mod state;
mod view;

use super::desk::Desk;
use super::store::Store;
use crate::error::{Error, Result};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use state::{Screen, Step};
use std::time::{Duration, Instant};

/// How often the clock is redrawn.
const TICK: Duration = Duration::from_millis(500);
/// How often the lease of the task is renewed.
const ALIVE: Duration = Duration::from_secs(30);

/// Locks the project and lets `annotator` judge until they leave.
///
/// Errors: the project is being served; the terminal cannot be used.
pub fn run(store: Store, annotator: i64) -> Result<()> {
    let settings = store.settings()?;
    let (desk, clerk) = Desk::open(store)?;
    let mut screen = Screen::new(settings);
    let mut terminal = ratatui::try_init().map_err(broken)?;
    let done = work(&mut terminal, &desk, annotator, &mut screen);
    ratatui::restore();
    let _ = desk.wait(annotator, super::desk::Ask::Leave);
    drop(desk);
    clerk.join().map_err(|_| Error::bug("the desk's thread panicked"))?;
    done
}

fn work(terminal: &mut ratatui::DefaultTerminal, desk: &Desk, annotator: i64, screen: &mut Screen) -> Result<()> {
    let mut alive = Instant::now();
    screen.answer(desk.wait(annotator, super::desk::Ask::Next));
    loop {
        terminal.draw(|frame| view::draw(frame, screen)).map_err(broken)?;
        if !event::poll(TICK).map_err(broken)? {
            if alive.elapsed() > ALIVE {
                alive = Instant::now();
                let ask = if screen.waits() { super::desk::Ask::Next } else { super::desk::Ask::Keep };
                let turn = desk.wait(annotator, ask);
                if screen.waits() {
                    screen.answer(turn);
                }
            }
            continue;
        }
        let Event::Key(key) = event::read().map_err(broken)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match screen.key(key) {
            Step::Stay => {}
            Step::Ask(ask) => screen.answer(desk.wait(annotator, ask)),
            Step::Leave => return Ok(()),
        }
    }
}

fn broken(e: std::io::Error) -> Error {
    Error::user(format!("the terminal: {e}")).hint("in a browser: ft label serve PROJECT")
}
