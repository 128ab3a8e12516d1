//! A row as a file has it, before anything is known about its format: its place, its columns or their JSON text.

use crate::error::{Error, Result};
use crate::json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// Maximum number of rows of a chunk.
pub(super) const CHUNK_ROWS: usize = 4096;
/// Number of bytes of text after which a chunk is full.
pub(super) const CHUNK_BYTES: usize = 8 << 20;

/// Columns of one row, in the file's order.
pub type RowColumns = Map<String, Value>;

/// A place in a file, which errors write as `data/train.jsonl:17`.
#[derive(Debug, Clone, Copy)]
pub struct RowPlace<'a> {
    /// The file.
    pub path: &'a Path,
    /// The line or row number, from 1.
    pub line: usize,
}

impl fmt::Display for RowPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// A row before it is parsed.
pub struct RawRow {
    /// From 1: the line in a JSON Lines file, the number of the row in other files.
    pub line: usize,
    pub(super) body: RowBody,
}

pub(super) enum RowBody {
    /// A line of JSON.
    Line(String),
    /// A JSON value of a file without one value per line, with the line and column where it begins.
    Value(String, [usize; 2]),
    Columns(RowColumns),
}

impl RawRow {
    /// Parses the row into its columns. Fails with line and column on bad JSON.
    pub fn columns(self, path: &Path) -> Result<RowColumns> {
        let (text, begins, row) = match self.body {
            RowBody::Columns(columns) => return Ok(columns),
            RowBody::Line(text) => (text, [self.line, 1], ""),
            RowBody::Value(text, begins) => (text, begins, " as row"),
        };
        let place = RowPlace { path, line: self.line };
        let error = match json::parse(&text) {
            Ok(Value::Object(columns)) => return Ok(columns),
            Ok(other) => {
                let found = shorten(&json::to_text(&other));
                return Err(Error::user(format!("{place}: expected a JSON object{row}, found {found}")));
            }
            Err(e) => e,
        };
        // Translate the position in the text to the position in the file.
        let (line, column) = (begins[0] + error.line().max(1) - 1, error.column());
        let column = if error.line() <= 1 { column + begins[1] - 1 } else { column };
        let at = match row {
            "" => format!("{place}:{column}"),
            _ => format!("{}:{line}:{column}", path.display()),
        };
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what);
        if let Some(byte) = json::find_lone_surrogate(&text) {
            let escape = text.get(byte..byte + 6).unwrap_or_default();
            return Err(Error::user(format!("{at}: bad JSON: a lone surrogate, {escape}, is not a character")).hint(
                "write the character itself, or both of its escapes; text that was cut inside an emoji has such halves",
            ));
        }
        // serde_json reports "trailing characters" for a comma after the object.
        let comma = text.trim_end().ends_with("},") && what.contains("trailing characters");
        let what = if comma { "a comma after the object; JSON Lines have no commas between rows" } else { what };
        let number = ["NaN", "Infinity"]
            .into_iter()
            .find(|word| text[start_of(&text, &error)..].trim_start_matches('-').starts_with(word));
        let what =
            number.map_or(what.to_string(), |word| format!("{word} is not valid JSON: write null, a number or text"));
        let wrong = Error::user(format!("{at}: bad JSON: {what}"));
        Err(match error.is_eof() {
            true => wrong.hint("a .jsonl file has one whole JSON object on each line; was the file cut off?"),
            false => wrong,
        })
    }
}

/// Returns the byte position of an error in the text; the end of the text if it is not a character boundary.
fn start_of(text: &str, error: &serde_json::Error) -> usize {
    let line = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let at = line + error.column().saturating_sub(1);
    if text.is_char_boundary(at) { at } else { text.len() }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// Which columns of a columnar file are decoded. Files of other kinds always give all columns of a row.
#[derive(Debug, Clone, Copy)]
pub enum ColumnSelection<'a> {
    /// All columns; one that cannot be decoded is an error.
    Every,
    /// All columns; one that cannot be decoded is null in every row.
    Readable,
    /// The columns of these names, as far as the file has them. Other columns are never decoded.
    Only(&'a [String]),
}

impl ColumnSelection<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            ColumnSelection::Every | ColumnSelection::Readable => true,
            ColumnSelection::Only(names) => names.iter().any(|n| n == name),
        }
    }

    pub(super) fn skips_unreadable(&self) -> bool {
        matches!(self, ColumnSelection::Readable)
    }
}

/// Number of rows and blank lines that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounts {
    /// Number of rows.
    pub rows: usize,
    /// Blank lines, which were skipped.
    pub blank: usize,
}

/// A function that receives chunks of rows.
pub type ChunkSink<'a> = &'a mut dyn FnMut(Vec<RawRow>) -> Result<()>;
