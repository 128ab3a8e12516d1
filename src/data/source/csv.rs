//! Reads CSV files a few megabytes at a time. Records are split here, fields by polars.
//!
//! Every column is text, because inferring types would turn an answer `007` into 7.

use super::columnar::{DecodedColumn, emit_rows};
use super::decoder::polars_error;
use super::file::{BOM, open};
use super::raw_row::{CHUNK_BYTES, ChunkSink, ColumnSelection, ReadCounts};
use super::segment::FileSegment;
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use polars::prelude::*;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

/// State for finding the ends of records: a line feed inside quotes does not end a record (RFC 4180).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CsvState {
    #[default]
    Start,
    Plain,
    Quoted,
    /// After a quote inside quotes: the end of the field, or the first half of an escaped quote.
    Closing,
}

impl CsvState {
    /// Advances by one byte. Returns true if it ends a record.
    pub fn step(&mut self, byte: u8) -> bool {
        *self = match (*self, byte) {
            (CsvState::Quoted, b'"') => CsvState::Closing,
            (CsvState::Quoted, _) => CsvState::Quoted,
            (CsvState::Start | CsvState::Closing, b'"') => CsvState::Quoted,
            (_, b'\n') => {
                *self = CsvState::Start;
                return true;
            }
            (_, b',') => CsvState::Start,
            _ => CsvState::Plain,
        };
        false
    }
}

/// Reads the records of a file one after the other.
struct CsvRecords<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
}

impl CsvRecords<'_> {
    /// Appends the next record with its line feed to `into`. Returns false at the end of the file.
    fn next(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        let (mut state, before) = (CsvState::default(), into.len());
        loop {
            let from = into.len();
            let n = self.reader.read_until(b'\n', into).map_err(|e| io_error("reading", self.path, e))?;
            if n == 0 {
                return match state {
                    CsvState::Quoted => {
                        Err(Error::user(format!("{}: a quoted field is not closed", self.path.display()))
                            .hint("a quote inside a quoted field is written twice: \"\""))
                    }
                    _ => Ok(into.len() > before),
                };
            }
            let mut ended = false;
            for byte in &into[from..] {
                ended = state.step(*byte);
            }
            if ended {
                return Ok(true);
            }
        }
    }
}

/// Returns the header without byte-order mark, and the byte position of the first record after it.
///
/// Errors: the file is empty, or two columns have the same name.
pub(super) fn header(path: &Path) -> Result<(Vec<u8>, u64)> {
    let mut header = Vec::new();
    let mut records = CsvRecords { path, reader: Box::new(BufReader::new(open(path)?)) };
    if !records.next(&mut header)? {
        return Err(Error::user(format!("{}: the file is empty", path.display())).hint("was it written completely?"));
    }
    let end = header.len() as u64;
    if header.starts_with(BOM) {
        header.drain(..BOM.len());
    }
    if header.last() != Some(&b'\n') {
        header.push(b'\n');
    }
    refuse_duplicate_columns(path, &header)?;
    Ok((header, end))
}

/// Fails if two columns have the same name, because it would be unclear which of them is meant.
fn refuse_duplicate_columns(path: &Path, header: &[u8]) -> Result<()> {
    let options = CsvReadOptions::default().with_has_header(false).with_infer_schema_length(Some(0));
    let names =
        options.into_reader_with_file_handle(Cursor::new(header)).finish().map_err(|e| polars_error(path, e))?;
    let mut seen = std::collections::BTreeSet::new();
    for column in names.columns() {
        let name = column.get(0).map_err(|e| polars_error(path, e))?.to_string();
        if !seen.insert(name.clone()) {
            return Err(Error::user(format!("{}:1: two columns have the name {name}", path.display()))
                .hint("give each column a name of its own"));
        }
    }
    Ok(())
}

/// Reads the rows of a part of the file.
pub(super) fn read(path: &Path, part: &FileSegment, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
    let (header, first) = header(path)?;
    let start = part.start.max(first);
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(start)).map_err(|e| io_error("reading", path, e))?;
    let reader = BufReader::with_capacity(1 << 20, file.take(part.end.saturating_sub(start)));
    let mut records = CsvRecords { path, reader: Box::new(reader) };
    let mut passage = ReadCounts::default();
    let mut more = true;
    while more && passage.rows < limit {
        let mut block = header.clone();
        let mut rows = 0;
        while block.len() < CHUNK_BYTES && passage.rows + rows < limit {
            let before = block.len();
            more = records.next(&mut block)?;
            if !more {
                break;
            }
            if block[before..].iter().all(u8::is_ascii_whitespace) {
                block.truncate(before);
                passage.blank += 1;
            } else {
                rows += 1;
            }
        }
        if rows == 0 {
            break;
        }
        let at = part.before + passage.rows;
        let place = |e: Error| e.context(format!("rows {} to {}", at + 1, at + rows));
        let frame = CsvReadOptions::default()
            .with_infer_schema_length(Some(0))
            .map_parse_options(|o| o.with_encoding(CsvEncoding::Utf8))
            .into_reader_with_file_handle(Cursor::new(block))
            .finish()
            .map_err(|e| place(polars_error(path, e)))?;
        if frame.height() != rows {
            return Err(Error::user(format!(
                "{}: rows {} to {}: {rows} records, read as {} rows",
                path.display(),
                at + 1,
                at + rows,
                frame.height()
            ))
            .hint("is a quote inside a field written twice, and every field with a comma or a line break quoted?"));
        }
        let column = |c: &polars::prelude::Column| DecodedColumn {
            name: c.name().to_string(),
            cells: Ok(c.as_materialized_series().chunks().clone()),
        };
        let columns: Vec<DecodedColumn> = frame.columns().iter().map(column).collect();
        emit_rows(path, &columns, at, rows, ColumnSelection::Every, take)?;
        passage.rows += rows;
    }
    Ok(passage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_outside_quotes() {
        let text = "a,b\n1,\"x\ny\"\n2,\"he said \"\"\nhi\"\"\"\n3,5\" pipe\n\"\",\n";
        let mut state = CsvState::default();
        let ends: Vec<usize> = text.bytes().enumerate().filter(|(_, b)| state.step(*b)).map(|(i, _)| i).collect();
        let records: Vec<&str> =
            ends.iter().scan(0, |from, to| Some(&text[std::mem::replace(from, to + 1)..*to])).collect();
        assert_eq!(records, ["a,b", "1,\"x\ny\"", "2,\"he said \"\"\nhi\"\"\"", "3,5\" pipe", "\"\","]);
    }
}
