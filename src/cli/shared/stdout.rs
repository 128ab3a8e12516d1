//! Writes results to stdout. A closed pipe (`ft recipe schema | head`) is no error.

use ft::error::{Error, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Writes text as it is, without a line break at its end.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::user(format!("writing to stdout: {e}"))),
        _ => Ok(()),
    }
}

/// Writes a value as JSON of several lines.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::bug(format!("writing JSON: {e}")))?;
    print(&(text + "\n"))
}
