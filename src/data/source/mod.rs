//! Reads files of rows in chunks, with the place of each row. The only folder that uses polars.
//!
//! Parquet, Arrow IPC and the fields of CSV are read by polars. JSON is not: polars infers the keys from the first rows
//! and gives them to every row, so a key that appears late (`tool_calls` in one message of many) is lost or becomes
//! null, and its errors name no line. Rows of JSON are passed on as text and parsed by the threads that tokenise them.
//! Invariant: one chunk of rows is in memory at a time, apart from what the caller keeps, whatever the size of the
//! file.

mod cells;
mod columnar;
mod csv;
mod file_list;
mod lines;
mod schema;
mod segment;
mod values;
mod write;

pub use file_list::files;
pub use segment::{FileLayout, FileSegment, layout};
pub use write::{write_each, write_for_owner};

use super::record::{RowColumns, RowPlace};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use crate::json;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Maximum number of rows of a chunk, and the number of bytes of text after which a chunk is full.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 8 << 20;

/// A row before it is parsed.
pub struct RawRow {
    /// From 1: the line in a JSON Lines file, the number of the row in other files.
    pub line: usize,
    body: RowBody,
}

enum RowBody {
    /// A line of JSON.
    Line(String),
    /// A JSON value of a file without one value per line, with the line and column where it begins.
    Value(String, [usize; 2]),
    Columns(RowColumns),
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
    fn has(&self, name: &str) -> bool {
        match self {
            ColumnSelection::Every | ColumnSelection::Readable => true,
            ColumnSelection::Only(names) => names.iter().any(|n| n == name),
        }
    }

    fn skips_unreadable(&self) -> bool {
        matches!(self, ColumnSelection::Readable)
    }
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

/// Number of rows and blank lines that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounts {
    pub rows: usize,
    /// Blank lines, which were skipped.
    pub blank: usize,
}

/// The kinds of files; for JSON, by content and not only by the extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// One JSON object per line.
    JsonLines,
    /// One list of objects, or objects of several lines each.
    JsonValues,
    Csv,
    Parquet,
    Ipc,
}

/// The extensions of files of rows.
pub const EXTENSIONS: [&str; 8] = ["jsonl", "ndjson", "json", "csv", "parquet", "arrow", "ipc", "feather"];

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Returns the kind of a file, by its extension and, for JSON, by its first value. Fails for unknown extensions.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    match extension(path).as_str() {
        "csv" => Ok(FileKind::Csv),
        "parquet" => Ok(FileKind::Parquet),
        "arrow" | "ipc" | "feather" => Ok(FileKind::Ipc),
        "jsonl" | "ndjson" | "json" => {
            Ok(if values::spans_lines(path)? { FileKind::JsonValues } else { FileKind::JsonLines })
        }
        "gz" | "zst" | "bz2" | "xz" | "zip" => {
            Err(Error::user(format!("{}: compressed files are not supported", path.display()))
                .hint("decompress it first"))
        }
        _ => Err(Error::user(format!("{}: unknown kind of file", path.display())).hint(
            "known: .jsonl, .json, .csv, .parquet, .arrow, .ipc, .feather; the extension must match the content",
        )),
    }
}

/// Passes at most `limit` rows of `path` to `take`, in order, one chunk at a time, with all their columns.
///
/// Errors: the file cannot be read or has no rows.
pub fn for_each_chunk(
    path: &Path,
    limit: Option<usize>,
    take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<ReadCounts> {
    for_each_selected_chunk(ColumnSelection::Every, path, limit, take)
}

/// As [`for_each_chunk`], with the selected columns.
pub fn for_each_selected_chunk(
    wanted: ColumnSelection,
    path: &Path,
    limit: Option<usize>,
    mut take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<ReadCounts> {
    let limit = limit.unwrap_or(usize::MAX);
    let passage = read(path, file_kind(path)?, &FileSegment::whole(), wanted, limit, &mut take)?;
    if passage.rows == 0 {
        return Err(no_rows_error(path));
    }
    Ok(passage)
}

/// Returns the error for a file without rows.
pub fn no_rows_error(path: &Path) -> Error {
    Error::user(format!("{}: the file has no rows", path.display())).hint("was it written completely?")
}

/// As [`for_each_selected_chunk`], for a part of the file, which may have no rows.
pub fn read(
    path: &Path,
    kind: FileKind,
    part: &FileSegment,
    wanted: ColumnSelection,
    limit: usize,
    take: ChunkSink,
) -> Result<ReadCounts> {
    match kind {
        FileKind::JsonLines => lines::read(path, part, limit, take),
        FileKind::JsonValues => values::read(path, limit, take),
        FileKind::Csv => csv::read(path, part, limit, take),
        FileKind::Parquet => columnar::parquet(path, part, wanted, limit, take),
        FileKind::Ipc => columnar::ipc(path, wanted, limit, take),
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| io_error("reading", path, e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Error::user(format!("{}: is a folder, expected a file of rows", path.display())));
    }
    Ok(file)
}

/// A function that receives chunks of rows.
pub type ChunkSink<'a> = &'a mut dyn FnMut(Vec<RawRow>) -> Result<()>;
