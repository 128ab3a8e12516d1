//! Reads the rows of a file as records: detects the format once per file, renames columns, and parses with several
//! threads.

use super::detect::{self, Want};
use super::record::{self, Columns, Place, Row};
use super::source::{self, RawRow, Wanted};
use super::spec::{RowFormat, SourceSpec};
use crate::error::{Error, Result};
use indexmap::IndexMap;
use rayon::prelude::*;
use std::path::Path;

/// How the rows of one file are read: format and columns.
#[derive(Debug, Clone)]
pub struct Reading {
    pub format: RowFormat,
    /// Columns of the first row that the format reads, and those that it does not read.
    pub used: Vec<String>,
    pub unused: Vec<String>,
    columns: IndexMap<String, String>,
    /// The columns that the format may read, by their names in the file.
    wanted: Vec<String>,
}

impl Reading {
    /// Prepares to read a file as `source` says. Looks at the first row; if the format is `auto`, detects it there.
    pub fn of(path: &Path, source: &SourceSpec, want: Want) -> Result<Self> {
        Self::of_first(1, path, source, want)
    }

    /// As [`Reading::of`], but skips rows that cannot be read, among the first `patience` rows.
    pub(super) fn of_first(patience: usize, path: &Path, source: &SourceSpec, want: Want) -> Result<Self> {
        let mut rows = Vec::new();
        source::for_each_chunk_of(Wanted::Readable, path, Some(patience), |chunk| {
            rows.extend(chunk);
            Ok(())
        })?;
        let mut reading = Self {
            format: source.format,
            used: Vec::new(),
            unused: Vec::new(),
            columns: source.columns.clone(),
            wanted: Vec::new(),
        };
        // Take the first row that can be read, or else the error of the very first row.
        let mut first = None;
        for raw in rows {
            let read = reading.columns(raw, path);
            let good = read.is_ok();
            if good || first.is_none() {
                first = Some(read);
            }
            if good {
                break;
            }
        }
        if let Some((_, columns)) = first.transpose()? {
            if reading.format == RowFormat::Auto {
                reading.format = detect::detect(&columns, want, path)?;
            }
            reading.used = detect::used_columns(&columns, reading.format);
            reading.unused = detect::unused_columns(&columns, reading.format);
        }
        let names = detect::used(reading.format).iter().map(|name| name.to_string());
        reading.wanted = names.chain(source.columns.values().cloned()).collect();
        Ok(reading)
    }

    /// Returns the columns to decode in a columnar file.
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted::Only(&self.wanted)
    }

    /// Returns line and columns of a row, under the names that formats use. Fails on bad JSON and on missing columns.
    pub fn columns(&self, raw: RawRow, path: &Path) -> Result<(usize, Columns)> {
        let line = raw.line;
        let mut columns = raw.columns(path)?;
        for (ours, theirs) in &self.columns {
            let Some(value) = columns.shift_remove(theirs) else {
                let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
                return Err(Error::user(format!("{}: no column `{theirs}`; found {found}", Place { path, line }))
                    .hint(format!("the source's `columns` says that `{ours}` is read from it")));
            };
            columns.insert(ours.clone(), value);
        }
        Ok((line, columns))
    }

    /// Reads a row as a record.
    pub fn row(&self, raw: RawRow, path: &Path) -> Result<Row> {
        let (line, columns) = self.columns(raw, path)?;
        record::read(columns, self.format, Place { path, line }).map(|record| Row { line, record })
    }

    /// Reads the rows of a chunk in parallel. If several rows are bad, the error is that of the first.
    pub fn rows(&self, chunk: Vec<RawRow>, path: &Path) -> Result<Vec<Row>> {
        let rows: Vec<Result<Row>> = chunk.into_par_iter().map(|raw| self.row(raw, path)).collect();
        rows.into_iter().collect()
    }

    /// Returns the renaming of columns as text, for the cache key.
    pub(super) fn renaming(&self) -> String {
        self.columns.iter().map(|(ours, theirs)| format!("{ours}\0{theirs}\0")).collect()
    }
}

/// Reads the rows of a file as records with answers to train on, without tokenising them. Returns the detected format
/// too.
pub fn read_rows(path: &Path, format: RowFormat, rows: Option<usize>) -> Result<(RowFormat, Vec<Row>)> {
    let reading = Reading::of(path, &SourceSpec::file(path, format), Want::Answers)?;
    let mut all = Vec::new();
    source::for_each_chunk_of(reading.wanted(), path, rows, |chunk| {
        all.extend(reading.rows(chunk, path)?);
        Ok(())
    })?;
    Ok((reading.format, all))
}
