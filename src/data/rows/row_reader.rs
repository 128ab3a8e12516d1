//! Reads the rows of a file as records: detects the format once per file, renames columns, and parses with several
//! threads.

use super::detect::{RowPurpose, detect_format};
use super::format::{RowFormat, format_columns, unused_columns, used_columns};
use super::read::read_record;
use super::record::RecordRow;
use super::source_spec::SourceSpec;
use crate::data::source::{self, ColumnSelection, RawRow, RowColumns, RowPlace};
use crate::error::{Error, Result};
use indexmap::IndexMap;
use rayon::prelude::*;
use std::path::Path;

/// How the rows of one file are read: format and columns.
#[derive(Debug, Clone)]
pub struct RowReader {
    /// The format of the rows; never `auto`, unless the file has no row.
    pub format: RowFormat,
    /// Columns of the first row that the format reads.
    pub used: Vec<String>,
    /// Columns of the first row that the format does not read.
    pub unused: Vec<String>,
    columns: IndexMap<String, String>,
    /// The columns that the format may read, by their names in the file.
    wanted: Vec<String>,
}

impl RowReader {
    /// Prepares to read a file as `source` says. Looks at the first row; if the format is `auto`, detects it there.
    pub fn of(path: &Path, source: &SourceSpec, want: RowPurpose) -> Result<Self> {
        Self::of_first_readable(1, path, source, want)
    }

    /// As [`RowReader::of`], but skips rows that cannot be read, among the first `patience` rows.
    pub(in crate::data) fn of_first_readable(
        patience: usize,
        path: &Path,
        source: &SourceSpec,
        want: RowPurpose,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        source::for_each_selected_chunk(ColumnSelection::Readable, path, Some(patience), |chunk| {
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
                reading.format = detect_format(&columns, want, path)?;
            }
            reading.used = used_columns(&columns, reading.format);
            reading.unused = unused_columns(&columns, reading.format);
        }
        let names = format_columns(reading.format).iter().map(|name| name.to_string());
        reading.wanted = names.chain(source.columns.values().cloned()).collect();
        Ok(reading)
    }

    /// Returns the columns to decode in a columnar file.
    pub fn wanted(&self) -> ColumnSelection<'_> {
        ColumnSelection::Only(&self.wanted)
    }

    /// Returns line and columns of a row, under the names that formats use. Fails on bad JSON and on missing columns.
    pub fn columns(&self, raw: RawRow, path: &Path) -> Result<(usize, RowColumns)> {
        let line = raw.line;
        let mut columns = raw.columns(path)?;
        for (ours, theirs) in &self.columns {
            let Some(value) = columns.shift_remove(theirs) else {
                let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
                return Err(Error::user(format!("{}: no column `{theirs}`; found {found}", RowPlace { path, line }))
                    .hint(format!("the source's `columns` says that `{ours}` is read from it")));
            };
            columns.insert(ours.clone(), value);
        }
        Ok((line, columns))
    }

    /// Reads a row as a record.
    pub fn row(&self, raw: RawRow, path: &Path) -> Result<RecordRow> {
        let (line, columns) = self.columns(raw, path)?;
        read_record(columns, self.format, RowPlace { path, line }).map(|record| RecordRow { line, record })
    }

    /// Reads the rows of a chunk in parallel. If several rows are bad, the error is that of the first.
    pub fn rows(&self, chunk: Vec<RawRow>, path: &Path) -> Result<Vec<RecordRow>> {
        let rows: Vec<Result<RecordRow>> = chunk.into_par_iter().map(|raw| self.row(raw, path)).collect();
        rows.into_iter().collect()
    }

    /// Returns the renaming of columns as text, for the cache key.
    pub(in crate::data) fn renaming(&self) -> String {
        self.columns.iter().map(|(ours, theirs)| format!("{ours}\0{theirs}\0")).collect()
    }
}

/// Reads the rows of a file as records with answers to train on, without tokenising them. Returns the detected format
/// too.
pub fn read_rows(path: &Path, format: RowFormat, rows: Option<usize>) -> Result<(RowFormat, Vec<RecordRow>)> {
    let reading = RowReader::of(path, &SourceSpec::file(path, format), RowPurpose::Answers)?;
    let mut all = Vec::new();
    source::for_each_selected_chunk(reading.wanted(), path, rows, |chunk| {
        all.extend(reading.rows(chunk, path)?);
        Ok(())
    })?;
    Ok((reading.format, all))
}
