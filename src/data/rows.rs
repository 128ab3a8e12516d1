//! Rows of a file as records: its format found out once, columns under their known names, threads for the parsing.

use super::detect::{self, Want};
use super::record::{self, Columns, Place, Row};
use super::source::{self, RawRow, Wanted};
use super::spec::{RowFormat, SourceSpec};
use crate::error::{Error, Result};
use indexmap::IndexMap;
use rayon::prelude::*;
use std::path::Path;

/// How the rows of one file are read.
#[derive(Debug, Clone)]
pub struct Reading {
    pub format: RowFormat,
    /// Columns of the first row that the format reads, and those that it does not.
    pub used: Vec<String>,
    pub unused: Vec<String>,
    columns: IndexMap<String, String>,
    /// The columns that rows of the format are made of, by the file's names.
    wanted: Vec<String>,
}

impl Reading {
    /// As a source asks for; looks at the first row where the format is left open.
    pub fn of(path: &Path, source: &SourceSpec, want: Want) -> Result<Self> {
        Self::of_first(1, path, source, want)
    }

    /// As [`Reading::of`], passing over rows that cannot be read, up to `patience` rows.
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
        // The first row that can be read; where none can, the error of the first.
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

    /// The columns that a columnar file is asked for.
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted::Only(&self.wanted)
    }

    /// The columns of a row under the names that formats know.
    pub fn columns(&self, raw: RawRow, path: &Path) -> Result<(usize, Columns)> {
        let line = raw.line;
        let mut columns = raw.columns(path)?;
        for (ours, theirs) in &self.columns {
            let Some(value) = columns.shift_remove(theirs) else {
                let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
                return Err(Error::user(format!("{}: no column `{theirs}`; found {found}", Place { path, line }))
                    .hint(format!("`columns` says that `{ours}` is read from it")));
            };
            columns.insert(ours.clone(), value);
        }
        Ok((line, columns))
    }

    /// What a row means.
    pub fn row(&self, raw: RawRow, path: &Path) -> Result<Row> {
        let (line, columns) = self.columns(raw, path)?;
        record::read(columns, self.format, Place { path, line }).map(|record| Row { line, record })
    }

    /// The records of a chunk; of several bad rows the first is reported.
    pub fn rows(&self, chunk: Vec<RawRow>, path: &Path) -> Result<Vec<Row>> {
        let rows: Vec<Result<Row>> = chunk.into_par_iter().map(|raw| self.row(raw, path)).collect();
        rows.into_iter().collect()
    }

    /// What columns are renamed, as text that is the same for the same renaming.
    pub(super) fn renaming(&self) -> String {
        self.columns.iter().map(|(ours, theirs)| format!("{ours}\0{theirs}\0")).collect()
    }
}

/// The rows of a file as records with answers to learn, before any tokenisation, and the format that was found.
pub fn read_rows(path: &Path, format: RowFormat, rows: Option<usize>) -> Result<(RowFormat, Vec<Row>)> {
    let reading = Reading::of(path, &SourceSpec::file(path, format), Want::Answers)?;
    let mut all = Vec::new();
    source::for_each_chunk_of(reading.wanted(), path, rows, |chunk| {
        all.extend(reading.rows(chunk, path)?);
        Ok(())
    })?;
    Ok((reading.format, all))
}
