//! Shows messages, tables and progress to the user.
//!
//! Messages go to stderr, so that stdout has only data that a program can read. Colours and bars appear only on a
//! terminal.

mod progress;
mod progress_log;

pub use progress::{Progress, bar, enclosing_work, spinner, training_bar};

use crate::characters::printable;
use console::{Style, style};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Returns true if stderr is a terminal, so that bars and colours can be shown.
pub fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints a line on stderr.
pub fn info(message: impl AsRef<str>) {
    progress::print_beside_bars(|| eprintln!("{}", message.as_ref()));
}

/// Prints a warning on stderr; the command continues.
pub fn warn(message: impl AsRef<str>) {
    progress::print_beside_bars(|| {
        eprintln!("{} {}", style("warning:").yellow().bold().for_stderr(), message.as_ref())
    });
}

/// Prints a warning unless this process printed the same one before, for causes that are met each time a file is read.
pub fn warn_once(message: impl AsRef<str>) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(message.as_ref().to_string()) {
        warn(message);
    }
}

/// Ends all progress output and prints an error with its hints.
pub fn error(e: &crate::error::Error) {
    progress::clear_all();
    eprintln!("{} {}", style("error:").red().bold().for_stderr(), e.message());
    for hint in e.hints() {
        eprintln!("{} {hint}", style("hint:").cyan().bold().for_stderr());
    }
    if e.kind() == crate::error::ErrorKind::Bug {
        eprintln!(
            "{} this is a bug in ft; please report it with the command and the lines above",
            style("note:").dim().for_stderr()
        );
    }
}

/// Prepares text of users and models for stdout. If a program reads stdout, the text stays unchanged. On a terminal,
/// characters that would control it or reverse the direction of text are replaced by their code points.
pub fn for_stdout(text: &str) -> Cow<'_, str> {
    match std::io::stdout().is_terminal() {
        true => printable(text).into(),
        false => text.into(),
    }
}

/// Returns a table with left-aligned columns; the first row is the header. The caller pads numbers to align them to the
/// right.
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

/// Formats a size in bytes as `12.3 MB`, in powers of 1000.
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

/// Formats a number as `1,234,567`.
pub fn count(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

/// Formats a duration as `12.3s`, `3m 12s` or `1h 05m`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..=59 => format!("{:.1}s", d.as_secs_f64()),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

/// Returns the style of good results in tables on stdout.
pub fn success_style() -> Style {
    Style::new().green()
}
