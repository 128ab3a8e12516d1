//! Talk to the person at the terminal. stderr carries talk, stdout carries data; colour and bars only on a terminal.

use console::{Style, style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};
use std::io::{IsTerminal, Result};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// True where stderr is a terminal: bars and colour make sense.
pub fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A line of news on stderr.
pub fn info(message: impl AsRef<str>) {
    eprintln!("{}", message.as_ref());
}

/// Something the user should look at, though the work goes on.
pub fn warn(message: impl AsRef<str>) {
    eprintln!("{} {}", style("warning:").yellow().bold().for_stderr(), message.as_ref());
}

/// An error with its hints, as the last thing said.
pub fn error(e: &crate::error::Error) {
    eprintln!("{} {}", style("error:").red().bold().for_stderr(), e.message());
    for hint in e.hints() {
        eprintln!("{} {hint}", style("hint:").cyan().bold().for_stderr());
    }
    if e.blame() == crate::error::Blame::Bug {
        eprintln!(
            "{} this is a bug in ft; please report it with the command and the lines above",
            style("note:").dim().for_stderr()
        );
    }
}

/// A bar over `total` pieces of work; where stderr is no terminal, a line every half minute.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let (target, shape) = match on_terminal() {
        true => (ProgressDrawTarget::stderr(), "{msg} [{bar:30}]"),
        false => (ProgressDrawTarget::term_like_with_hz(Box::new(Lines::new(eprint_line)), 1), "{msg}"),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(
        ProgressStyle::with_template(&format!("{shape} {{human_pos}}/{{human_len}} {{rate}} eta {{eta}}"))
            .expect("template is constant")
            .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{:.0}/s", state.per_sec());
            })
            .progress_chars("=> "),
    );
    bar.set_message(what.to_string());
    bar
}

/// Between two lines about the same work in a log.
const RHYTHM: Duration = Duration::from_secs(30);

fn eprint_line(line: &str) {
    eprintln!("{line}");
}

/// What stands in for a terminal in a log: no cursor, and few of the states that a bar goes through.
#[derive(Debug)]
struct Lines {
    said: Mutex<Instant>,
    say: fn(&str),
}

impl Lines {
    fn new(say: fn(&str)) -> Self {
        Self { said: Mutex::new(Instant::now()), say }
    }

    fn state(&self, text: &str, now: Instant) {
        let mut said = self.said.lock().expect("nobody panics while holding it");
        if !text.trim().is_empty() && now.duration_since(*said) >= RHYTHM {
            *said = now;
            (self.say)(text.trim());
        }
    }
}

impl TermLike for Lines {
    fn width(&self) -> u16 {
        120
    }

    fn move_cursor_up(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn write_line(&self, s: &str) -> Result<()> {
        self.write_str(s)
    }

    fn write_str(&self, s: &str) -> Result<()> {
        self.state(s, Instant::now());
        Ok(())
    }

    fn clear_line(&self) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// A spinner for work of unknown length; hidden where stderr is no terminal.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = if on_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A table with aligned columns: the first row is the header; numbers are right-aligned by the caller's format.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| console::measure_text_width(s)).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| -> String {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(c, s)| console::pad_str(s, width[c], console::Alignment::Left, None).into_owned())
            .collect();
        cells.join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `12.3 MB`, in powers of 1000.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

/// `3m 12s`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..=59 => format!("{:.1}s", d.as_secs_f64()),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

/// The style of things that went well, for stdout tables.
pub fn good() -> Style {
    Style::new().green()
}

#[cfg(test)]
mod tests {
    use super::*;

    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn a_log_gets_a_line_every_half_minute() {
        let lines = Lines::new(|line| SAID.lock().unwrap().push(line.into()));
        let begun = Instant::now();
        for second in 0..=95 {
            let now = begun + Duration::from_secs(second);
            lines.state(&format!("rows {second}/95   "), now);
            lines.state("   ", now);
        }
        let said = SAID.lock().unwrap();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("rows 3") && !said[0].ends_with(' '), "{said:?}");
    }
}
