//! Lets one person judge in a terminal. `state` decides what a key does, `view` draws the screen, and the desk assigns
//! tasks and saves votes.

mod state;
mod view;

use crate::error::{Error, Result};
use crate::label::people::desk::Desk;
use crate::label::people::request::DeskRequest;
use crate::label::store::Store;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use state::{KeyAction, TerminalScreen};
use std::time::{Duration, Instant};

/// How often the clock is redrawn.
const TICK: Duration = Duration::from_millis(500);

/// How often the lease of the task is renewed.
const KEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Locks the project and lets `annotator` judge until they leave.
///
/// Errors: the project is being served; the terminal cannot be used.
pub fn run(store: Store, annotator: i64) -> Result<()> {
    let settings = store.settings()?;
    let (desk, clerk) = Desk::open(store)?;
    let mut screen = TerminalScreen::new(settings);
    let mut terminal = ratatui::try_init().map_err(broken)?;
    let done = event_loop(&mut terminal, &desk, annotator, &mut screen);
    ratatui::restore();
    let _ = desk.ask_and_wait(annotator, DeskRequest::Leave);
    drop(desk);
    clerk.join().map_err(|_| Error::bug("the desk's thread panicked"))?;
    done
}

fn event_loop(
    terminal: &mut ratatui::DefaultTerminal,
    desk: &Desk,
    annotator: i64,
    screen: &mut TerminalScreen,
) -> Result<()> {
    let mut alive = Instant::now();
    screen.update(desk.ask_and_wait(annotator, DeskRequest::Next));
    loop {
        terminal.draw(|frame| view::draw(frame, screen)).map_err(broken)?;
        if !event::poll(TICK).map_err(broken)? {
            if alive.elapsed() > KEEP_INTERVAL {
                alive = Instant::now();
                let turn = if screen.waits() { DeskRequest::Next } else { DeskRequest::Keep };
                let turn = desk.ask_and_wait(annotator, turn);
                if screen.waits() {
                    screen.update(turn);
                }
            }
            continue;
        }
        let Event::Key(key) = event::read().map_err(broken)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match screen.key(key) {
            KeyAction::Stay => {}
            KeyAction::Ask(turn) => screen.update(desk.ask_and_wait(annotator, turn)),
            KeyAction::Leave => return Ok(()),
        }
    }
}

fn broken(e: std::io::Error) -> Error {
    Error::user(format!("the terminal: {e}")).hint("in a browser: ft label serve PROJECT")
}
