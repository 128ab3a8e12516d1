//! A first look at a file: its format, its columns, its first rows, and every row that cannot be read.
//!
//! Unlike a dataset, it goes on after a bad row, so that one look shows them all.

use super::detect::{self, Want};
use super::record::{self, Columns, Place, Row};
use super::rows::Reading;
use super::source::{self, RawRow, Wanted};
use super::spec::{RowFormat, SourceSpec};
use crate::error::Result;
use crate::report;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Survey {
    pub path: PathBuf,
    pub format: RowFormat,
    /// Whether the format was found out, and not asked for.
    pub found: bool,
    pub rows: usize,
    pub blank_lines: usize,
    /// Every column that some row has, with how many have it (and not null), in order of first sight.
    pub columns: Vec<(String, usize)>,
    /// Those that the format reads, and those that it does not.
    pub used_columns: Vec<String>,
    pub unused_columns: Vec<String>,
    /// The first readable rows.
    pub first: Vec<Row>,
    /// How many rows cannot be read, and one message each for the first of them, with its place and key.
    pub bad: usize,
    pub bad_rows: Vec<String>,
}

/// Rows that may be bad before the format is given up.
const PATIENCE: usize = 100;
/// Messages kept.
const MESSAGES: usize = 1000;

/// Looks through the first rows of a file, as many as `source` says, and keeps `show` of them.
pub fn survey(path: &Path, source: &SourceSpec, show: usize) -> Result<Survey> {
    let reading = Reading::of_first(PATIENCE, path, source, Want::Anything)?;
    let mut seen = Survey {
        path: path.to_path_buf(),
        format: reading.format,
        found: source.format == RowFormat::Auto,
        rows: 0,
        blank_lines: 0,
        columns: Vec::new(),
        used_columns: Vec::new(),
        unused_columns: Vec::new(),
        first: Vec::new(),
        bad: 0,
        bad_rows: Vec::new(),
    };
    let look = |raw: RawRow| -> (Vec<(String, bool)>, Result<Row>) {
        let (line, columns) = match reading.columns(raw, path) {
            Ok(columns) => columns,
            Err(e) => return (Vec::new(), Err(e)),
        };
        let names = columns.iter().map(|(name, value)| (name.clone(), !value.is_null())).collect();
        let row = record::read(columns, reading.format, Place { path, line }).map(|record| Row { line, record });
        (names, row)
    };
    let bar = report::spinner(&format!("{}: rows", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let passage = source::for_each_chunk_of(Wanted::Readable, path, source.rows, |chunk| {
        bar.inc(chunk.len() as u64);
        let looked: Vec<_> = chunk.into_par_iter().map(look).collect();
        for (names, row) in looked {
            for (name, filled) in names {
                let at = *places.entry(name.clone()).or_insert_with(|| {
                    seen.columns.push((name, 0));
                    seen.columns.len() - 1
                });
                seen.columns[at].1 += usize::from(filled);
            }
            match row {
                Ok(row) if seen.first.len() < show => seen.first.push(row),
                Ok(_) => {}
                Err(e) => {
                    seen.bad += 1;
                    if seen.bad_rows.len() < MESSAGES {
                        seen.bad_rows.push(e.message().to_string());
                    }
                }
            }
        }
        Ok(())
    });
    bar.finish_and_clear();
    (seen.rows, seen.blank_lines) = passage.map(|p| (p.rows, p.blank))?;
    let all: Columns = seen.columns.iter().map(|(name, _)| (name.clone(), serde_json::Value::Null)).collect();
    seen.used_columns = detect::used_columns(&all, seen.format);
    seen.unused_columns = detect::unused_columns(&all, seen.format);
    Ok(seen)
}
