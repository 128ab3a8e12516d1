//! Rows of a file, in chunks, with the place of each: the only folder that knows polars.
//!
//! Parquet, Arrow IPC and the fields of CSV go through polars. JSON does not: polars gives every row the union of the keys
//! that it inferred from the first rows, so a key that appears late (`tool_calls` in one message of many) is lost or
//! becomes null, and an error names no line. Rows of JSON are handed on as text and parsed by the threads that tokenise
//! them. Invariant: memory holds one chunk of rows beside what the caller keeps, whatever the size of the file.

mod cells;
mod columnar;
mod csv;
mod lines;
mod places;
mod schema;
mod segment;
mod values;
mod write;

pub use places::files;
pub use segment::{Layout, Segment, layout};
pub use write::{write_each, write_for_owner};

use super::json;
use super::record::{Columns, Place};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Rows handed on at a time, and the bytes of text after which a chunk is full.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 8 << 20;

/// A row before its meaning is known.
pub struct RawRow {
    /// 1-based: the line of a JSON Lines file, the number of the row elsewhere.
    pub line: usize,
    body: Body,
}

enum Body {
    /// A line.
    Line(String),
    /// A value of a file whose values do not stand on lines of their own; with the line and column where it begins.
    Value(String, [usize; 2]),
    Columns(Columns),
}

/// Which columns of a columnar file are decoded. Other kinds of file have the columns of a row in one place, and give
/// all of them.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// All; one that cannot be decoded is an error.
    Every,
    /// All; one that cannot be decoded is null in every row.
    Readable,
    /// Those of these names that the file has; whatever the others hold is not looked at.
    Only(&'a [String]),
}

impl Wanted<'_> {
    fn has(&self, name: &str) -> bool {
        match self {
            Wanted::Every | Wanted::Readable => true,
            Wanted::Only(names) => names.iter().any(|n| n == name),
        }
    }

    fn forgives(&self) -> bool {
        matches!(self, Wanted::Readable)
    }
}

impl RawRow {
    /// The columns of the row; a bad line of JSON is found here.
    pub fn columns(self, path: &Path) -> Result<Columns> {
        let (text, begins, row) = match self.body {
            Body::Columns(columns) => return Ok(columns),
            Body::Line(text) => (text, [self.line, 1], ""),
            Body::Value(text, begins) => (text, begins, " as row"),
        };
        let place = Place { path, line: self.line };
        let error = match json::parse(&text) {
            Ok(Value::Object(columns)) => return Ok(columns),
            Ok(other) => {
                let found = shorten(&json::text(&other));
                return Err(Error::user(format!("{place}: expected a JSON object{row}, found {found}")));
            }
            Err(e) => e,
        };
        // Where it is wrong, in the file.
        let (line, column) = (begins[0] + error.line().max(1) - 1, error.column());
        let column = if error.line() <= 1 { column + begins[1] - 1 } else { column };
        let at = match row {
            "" => format!("{place}:{column}"),
            _ => format!("{}:{line}:{column}", path.display()),
        };
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what);
        if let Some(byte) = json::lone_surrogate(&text) {
            let escape = text.get(byte..byte + 6).unwrap_or_default();
            return Err(Error::user(format!("{at}: bad JSON: a lone surrogate, {escape}, is no character")).hint(
                "write the character itself, or its pair of escapes; text that was cut inside an emoji has such halves",
            ));
        }
        // What an object at the end of a line goes on with is a comma for the next.
        let comma = text.trim_end().ends_with("},") && what.contains("trailing characters");
        let what = if comma { "a comma after the object; lines of JSON have none between them" } else { what };
        let number = ["NaN", "Infinity"]
            .into_iter()
            .find(|word| text[start_of(&text, &error)..].trim_start_matches('-').starts_with(word));
        let what = number.map_or(what.to_string(), |word| format!("{word} is no JSON: write null, a number or text"));
        let wrong = Error::user(format!("{at}: bad JSON: {what}"));
        Err(match error.is_eof() {
            true => wrong.hint("a .jsonl file has one whole JSON object on each line; was the file cut off?"),
            false => wrong,
        })
    }
}

/// The byte of the text at which an error stands, or its end.
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

/// What was passed over on the way, and how far the file was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    pub rows: usize,
    /// Lines with nothing on them.
    pub blank: usize,
}

/// The kinds of file, by what they are and not only by their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A JSON object a line.
    JsonLines,
    /// One list of objects, or objects that take several lines each.
    JsonValues,
    Csv,
    Parquet,
    Ipc,
}

/// The endings of file names that hold rows.
pub const EXTENSIONS: [&str; 8] = ["jsonl", "ndjson", "json", "csv", "parquet", "arrow", "ipc", "feather"];

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The kind of this file: its extension, and for JSON how its first value stands.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    match extension(path).as_str() {
        "csv" => Ok(FileKind::Csv),
        "parquet" => Ok(FileKind::Parquet),
        "arrow" | "ipc" | "feather" => Ok(FileKind::Ipc),
        "jsonl" | "ndjson" | "json" => {
            Ok(if values::begins_one(path)? { FileKind::JsonValues } else { FileKind::JsonLines })
        }
        "gz" | "zst" | "bz2" | "xz" | "zip" => {
            Err(Error::user(format!("{}: packed files are not read", path.display())).hint("unpack it first"))
        }
        _ => Err(Error::user(format!("{}: unknown kind of file", path.display()))
            .hint("known: .jsonl, .json, .csv, .parquet, .arrow, .ipc, .feather; rename the file after what it holds")),
    }
}

/// Hands the rows of `path` to `take`, a chunk at a time and in order, at most `limit` of them, with all their columns.
pub fn for_each_chunk(
    path: &Path,
    limit: Option<usize>,
    take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<Passage> {
    for_each_chunk_of(Wanted::Every, path, limit, take)
}

/// As [`for_each_chunk`], with the columns that are wanted.
pub fn for_each_chunk_of(
    wanted: Wanted,
    path: &Path,
    limit: Option<usize>,
    mut take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<Passage> {
    let limit = limit.unwrap_or(usize::MAX);
    let passage = read(path, file_kind(path)?, &Segment::whole(), wanted, limit, &mut take)?;
    if passage.rows == 0 {
        return Err(no_row(path));
    }
    Ok(passage)
}

/// The error of a file without rows.
pub fn no_row(path: &Path) -> Error {
    Error::user(format!("{}: the file holds no row", path.display())).hint("was it written completely?")
}

/// As [`for_each_chunk`], for a part of the file; it may hold no row.
pub fn read(path: &Path, kind: FileKind, part: &Segment, wanted: Wanted, limit: usize, take: Take) -> Result<Passage> {
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

/// Takes a chunk of rows.
pub type Take<'a> = &'a mut dyn FnMut(Vec<RawRow>) -> Result<()>;
