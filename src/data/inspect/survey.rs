//! Surveys a file: its format, its columns, its first rows, and every row that cannot be read.
//!
//! Unlike a data set, a survey continues after a bad row, so that it reports all of them at once.

use crate::data::rows::{
    RecordRow, RowFormat, RowPurpose, RowReader, SourceSpec, read_record, unused_columns, used_columns,
};
use crate::data::source::{self, ColumnSelection, RawRow, RowColumns, RowPlace};
use crate::error::Result;
use crate::report;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The result of a survey.
#[derive(Debug, Clone)]
pub struct FileSurvey {
    /// The file.
    pub path: PathBuf,
    /// The format of the rows (never `auto`).
    pub format: RowFormat,
    /// Whether the format was detected (false if the user set it).
    pub format_detected: bool,
    /// Number of rows.
    pub rows: usize,
    /// Number of empty lines that were skipped.
    pub blank_lines: usize,
    /// Every column that any row has, with the number of rows where it is not null, in order of first occurrence.
    pub columns: Vec<(String, usize)>,
    /// The columns that the format reads.
    pub used_columns: Vec<String>,
    /// The columns that the format does not read.
    pub unused_columns: Vec<String>,
    /// The first readable rows.
    pub first: Vec<RecordRow>,
    /// Number of rows that cannot be read.
    pub bad: usize,
    /// The error messages of the first bad rows, with place and key.
    pub bad_rows: Vec<String>,
}

/// Maximum number of bad rows at the beginning before the format cannot be detected.
const MAX_UNREADABLE_ROWS: usize = 100;
/// Maximum number of error messages.
const MESSAGES: usize = 1000;

/// Surveys the rows of a file, as many as `source` allows, and keeps the first `show` readable ones.
pub fn survey_file(path: &Path, source: &SourceSpec, show: usize) -> Result<FileSurvey> {
    let reading = RowReader::of_first_readable(MAX_UNREADABLE_ROWS, path, source, RowPurpose::Anything)?;
    let mut seen = FileSurvey {
        path: path.to_path_buf(),
        format: reading.format,
        format_detected: source.format == RowFormat::Auto,
        rows: 0,
        blank_lines: 0,
        columns: Vec::new(),
        used_columns: Vec::new(),
        unused_columns: Vec::new(),
        first: Vec::new(),
        bad: 0,
        bad_rows: Vec::new(),
    };
    let look = |at: RawRow| -> (Vec<(String, bool)>, Result<RecordRow>) {
        let (line, columns) = match reading.columns(at, path) {
            Ok(columns) => columns,
            Err(e) => return (Vec::new(), Err(e)),
        };
        let names = columns.iter().map(|(name, value)| (name.clone(), !value.is_null())).collect();
        let row =
            read_record(columns, reading.format, RowPlace { path, line }).map(|record| RecordRow { line, record });
        (names, row)
    };
    let bar = report::spinner(&format!("{}: rows", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let passage = source::for_each_selected_chunk(ColumnSelection::Readable, path, source.rows, |chunk| {
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
    let all: RowColumns = seen.columns.iter().map(|(name, _)| (name.clone(), serde_json::Value::Null)).collect();
    seen.used_columns = used_columns(&all, seen.format);
    seen.unused_columns = unused_columns(&all, seen.format);
    Ok(seen)
}
