//! Reads JSON files without one row per line: a list of objects, objects of several lines each, or several such values
//! one after another. The file is split into its values here; their content is parsed elsewhere.

use super::file::{BOM, open};
use super::raw_row::{CHUNK_BYTES, CHUNK_ROWS, ChunkSink, RawRow, ReadCounts, RowBody};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Returns true if the file begins with a list, or with an object that continues on the next line.
pub(super) fn spans_lines(path: &Path) -> Result<bool> {
    let mut bytes = ByteReader::open(path)?;
    match bytes.skip_whitespace()? {
        Some(b'[') => Ok(true),
        // A line that ends inside a string is a broken line of JSON Lines, because strings cannot contain line feeds.
        Some(b'{') => {
            let mut value = ValueScanner::default();
            while let Some(byte) = bytes.peek()?.filter(|b| *b != b'\n') {
                bytes.pass(byte);
                if value.step(byte) {
                    return Ok(false);
                }
            }
            Ok(!value.quoted && bytes.skip_whitespace()?.is_some())
        }
        _ => Ok(false),
    }
}

/// State for finding the end of a JSON value.
#[derive(Default)]
struct ValueScanner {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl ValueScanner {
    /// Advances by one byte. Returns true if it ends the object, list or string.
    fn step(&mut self, byte: u8) -> bool {
        if self.quoted {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.quoted = false,
                _ => {}
            }
            return !self.quoted && self.depth == 0;
        }
        match byte {
            b'"' => self.quoted = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// The position in the file, relative to a list of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ListState {
    /// Outside any list.
    Top,
    /// In a list, after its bracket or a comma.
    Open { first: bool },
    /// In a list, after a value.
    Closed,
}

/// Reads the bytes of a file and tracks line and column.
struct ByteReader<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    line: usize,
    column: usize,
}

impl<'a> ByteReader<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 20, open(path)?);
        if reader.fill_buf().map_err(|e| io_error("reading", path, e))?.starts_with(BOM) {
            reader.consume(BOM.len());
        }
        Ok(Self { path, reader, line: 1, column: 1 })
    }

    /// Skips white space. Returns the next byte without consuming it; `None` at the end of the file.
    fn skip_whitespace(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()?.filter(u8::is_ascii_whitespace) {
            self.pass(byte);
        }
        self.peek()
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.reader.fill_buf().map_err(|e| io_error("reading", self.path, e))?.first().copied())
    }

    /// Consumes the byte that `peek` returned.
    fn pass(&mut self, byte: u8) {
        self.reader.consume(1);
        match byte {
            b'\n' => (self.line, self.column) = (self.line + 1, 1),
            _ => self.column += 1,
        }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::user(format!("{}: bad JSON: {what} (line {}, column {})", self.path.display(), self.line, self.column))
    }

    /// Reads one JSON value as text; `row` is its number, for errors.
    fn value(&mut self, row: usize) -> Result<Vec<u8>> {
        let (mut bytes, mut value, began) = (Vec::new(), ValueScanner::default(), self.line);
        while let Some(byte) = self.peek()? {
            // A number or a keyword such as `null` ends before the byte that follows it.
            let plain = value.depth == 0 && !value.quoted && !matches!(byte, b'{' | b'[' | b'"');
            if plain && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']' | b'}' | b':')) {
                if bytes.is_empty() {
                    self.pass(byte);
                    return Err(self.wrong(&format!("`{}` where row {row} begins", char::from(byte))));
                }
                return Ok(bytes);
            }
            self.pass(byte);
            bytes.push(byte);
            if value.step(byte) {
                return Ok(bytes);
            }
        }
        match value.depth == 0 && !value.quoted {
            true => Ok(bytes),
            false => Err(self
                .wrong(&format!("the file ends inside row {row}, which begins in line {began}"))
                .hint("was the file written completely?")),
        }
    }
}

/// Reads the rows of a file. The place of a row in a list is its number, that of other rows is the line in which it
/// begins.
pub(super) fn read(path: &Path, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
    let mut bytes = ByteReader::open(path)?;
    let mut passage = ReadCounts::default();
    let (mut chunk, mut size, mut state) = (Vec::new(), 0, ListState::Top);
    while passage.rows < limit {
        let row = passage.rows + 1;
        let Some(byte) = bytes.skip_whitespace()? else {
            if state == ListState::Top {
                break;
            }
            return Err(bytes
                .wrong(&format!("the file ends inside its list, before row {row}"))
                .hint("was the file written completely?"));
        };
        state = match (state, byte) {
            (ListState::Top, b'[') => {
                bytes.pass(byte);
                ListState::Open { first: true }
            }
            (ListState::Open { first: true } | ListState::Closed, b']') => {
                bytes.pass(byte);
                ListState::Top
            }
            (ListState::Closed, b',') => {
                bytes.pass(byte);
                ListState::Open { first: false }
            }
            (ListState::Open { first: false }, b']') => {
                return Err(bytes.wrong("a comma before the end of the list").hint("remove the last comma"));
            }
            (ListState::Top, b',') => {
                return Err(bytes
                    .wrong("a comma between rows that are not in a list")
                    .hint("remove the commas between them, or put all rows into one list: [ …, … ]"));
            }
            (ListState::Closed, _) => return Err(bytes.wrong("expected `,` or `]` after a row of the list")),
            (place, _) => {
                let begins = [bytes.line, bytes.column];
                let value = bytes.value(row)?;
                let text = String::from_utf8(value).map_err(|e| {
                    let valid = e.utf8_error().valid_up_to();
                    Error::user(format!("{}:{}: not UTF-8 (byte {} of the row)", path.display(), begins[0], valid + 1))
                        .hint("convert the file with: iconv -f LATIN1 -t UTF-8")
                })?;
                passage.rows += 1;
                size += text.len();
                let line = if place == ListState::Top { begins[0] } else { passage.rows };
                chunk.push(RawRow { line, body: RowBody::Value(text, begins) });
                if chunk.len() == CHUNK_ROWS || size > CHUNK_BYTES {
                    take(std::mem::take(&mut chunk))?;
                    size = 0;
                }
                if place == ListState::Top { ListState::Top } else { ListState::Closed }
            }
        };
    }
    if !chunk.is_empty() {
        take(chunk)?;
    }
    Ok(passage)
}
