//! Rows of a file, in chunks, with the place of each: the only folder that knows polars.
//!
//! Parquet, Arrow IPC and the fields of CSV go through polars. JSON does not: polars gives every row the union of the keys
//! that it inferred from the first rows, so a key that appears late (`tool_calls` in one message of many) is lost or
//! becomes null, and an error names no line. Lines of JSON are handed on as text and parsed by the threads that tokenise
//! them. Invariant: memory holds one chunk of rows beside what the caller keeps, whatever the size of the file.

mod columnar;
mod csv;
mod json;
mod places;
mod segment;
mod write;

pub use places::files;
pub use segment::{Layout, Segment, layout};
pub use write::{write_each, write_for_owner};

use super::record::{Columns, Place};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
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
    Json(String),
    Columns(Columns),
}

impl RawRow {
    /// The columns of the row; a bad line of JSON is found here.
    pub fn columns(self, path: &Path) -> Result<Columns> {
        let text = match self.body {
            Body::Columns(columns) => return Ok(columns),
            Body::Json(text) => text,
        };
        let place = Place { path, line: self.line };
        match serde_json::from_str(&text) {
            Ok(Value::Object(columns)) => Ok(columns),
            Ok(other) => {
                Err(Error::user(format!("{place}: expected a JSON object, found {}", shorten(&other.to_string()))))
            }
            Err(e) => {
                let what = e.to_string();
                let what = what.split(" at line ").next().unwrap_or(&what).to_string();
                let error = Error::user(format!("{place}:{}: bad JSON: {what}", e.column()));
                Err(if e.is_eof() {
                    error.hint("a .jsonl file has one whole JSON object on each line; was the file cut off?")
                } else if what.contains("surrogate") {
                    error.hint("a \\ud800–\\udfff escape stands alone, which is no character; write the character itself, or its pair of escapes")
                } else {
                    error
                })
            }
        }
    }
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
    JsonLines,
    JsonArray,
    Csv,
    Parquet,
    Ipc,
}

/// The endings of file names that hold rows.
pub const EXTENSIONS: [&str; 8] = ["jsonl", "ndjson", "json", "csv", "parquet", "arrow", "ipc", "feather"];

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The kind of this file: its extension, and for JSON its first character.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    match extension(path).as_str() {
        "csv" => Ok(FileKind::Csv),
        "parquet" => Ok(FileKind::Parquet),
        "arrow" | "ipc" | "feather" => Ok(FileKind::Ipc),
        "jsonl" | "ndjson" | "json" => {
            let mut head = [0u8; 4096];
            let n = open(path)?.read(&mut head).map_err(|e| io_error("reading", path, e))?;
            let head = head[..n].strip_prefix(BOM).unwrap_or(&head[..n]);
            let first = head.iter().find(|b| !b.is_ascii_whitespace());
            Ok(if first == Some(&b'[') { FileKind::JsonArray } else { FileKind::JsonLines })
        }
        "gz" | "zst" | "bz2" | "xz" | "zip" => {
            Err(Error::user(format!("{}: packed files are not read", path.display())).hint("unpack it first"))
        }
        _ => Err(Error::user(format!("{}: unknown kind of file", path.display()))
            .hint("known: .jsonl, .json, .csv, .parquet, .arrow, .ipc, .feather; rename the file after what it holds")),
    }
}

/// Hands the rows of `path` to `take`, a chunk at a time and in order, at most `limit` of them.
pub fn for_each_chunk(
    path: &Path,
    limit: Option<usize>,
    mut take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<Passage> {
    let passage = read(path, file_kind(path)?, &Segment::whole(), limit.unwrap_or(usize::MAX), &mut take)?;
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
pub fn read(path: &Path, kind: FileKind, part: &Segment, limit: usize, take: Take) -> Result<Passage> {
    match kind {
        FileKind::JsonLines => json::lines(path, part, limit, take),
        FileKind::JsonArray => json::array(path, limit, take),
        FileKind::Csv => csv::read(path, part, limit, take),
        FileKind::Parquet => columnar::parquet(path, part, limit, take),
        FileKind::Ipc => columnar::ipc(path, limit, take),
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
