//! A first look at a file: its format, its columns, its first rows, and every row that cannot be read.
//!
//! Unlike `load`, it goes on after a bad row, so that one look shows them all.

use super::record::{self, Place, Row};
use super::{RowFormat, source};
use crate::error::Result;
use std::path::Path;

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Survey {
    pub format: RowFormat,
    /// Whether the format was found out, and not asked for.
    pub found: bool,
    pub rows: usize,
    pub blank_lines: usize,
    /// Every column that some row has, in order of first sight.
    pub columns: Vec<String>,
    /// Those that the format does not read.
    pub unused_columns: Vec<String>,
    /// The first readable rows.
    pub first: Vec<Row>,
    /// One message a bad row, with its place and key.
    pub bad_rows: Vec<String>,
}

/// Looks through the first `rows` rows of a file and keeps `show` of them.
pub fn survey(path: &Path, format: RowFormat, rows: Option<usize>, show: usize) -> Result<Survey> {
    let mut seen = Survey {
        format,
        found: format == RowFormat::Auto,
        rows: 0,
        blank_lines: 0,
        columns: Vec::new(),
        unused_columns: Vec::new(),
        first: Vec::new(),
        bad_rows: Vec::new(),
    };
    let passage = source::for_each_chunk(path, rows, |chunk| {
        for raw in chunk {
            let line = raw.line;
            let columns = match raw.columns(path) {
                Ok(columns) => columns,
                Err(e) => {
                    seen.bad_rows.push(e.message().to_string());
                    continue;
                }
            };
            if seen.format == RowFormat::Auto {
                seen.format = record::detect(&columns, path)?;
            }
            for name in columns.keys() {
                if !seen.columns.contains(name) {
                    seen.columns.push(name.clone());
                }
            }
            for name in record::unused(&columns, seen.format) {
                if !seen.unused_columns.contains(&name) {
                    seen.unused_columns.push(name);
                }
            }
            match record::read(columns, seen.format, Place { path, line }) {
                Ok(record) if seen.first.len() < show => seen.first.push(Row { line, record }),
                Ok(_) => {}
                Err(e) => seen.bad_rows.push(e.message().to_string()),
            }
        }
        Ok(())
    })?;
    (seen.rows, seen.blank_lines) = (passage.rows, passage.blank);
    Ok(seen)
}
