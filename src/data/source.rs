//! Rows of a file, in chunks, with the place of each: the only file that knows polars.
//!
//! CSV, Parquet and Arrow IPC go through polars. JSON does not: polars gives every row the union of the keys that it
//! inferred from the first rows, so a key that appears late (`tool_calls` in one message of many) is lost or becomes
//! null, and an error names no line. Lines of JSON are handed on as text and parsed by the threads that tokenise them.
//! Invariant: memory holds one chunk of text beside what the caller keeps (CSV and IPC: the columns of the file).

use super::record::{Columns, Place};
use crate::error::{Error, Result};
use crate::fsutil::{hex, io_error};
use polars::prelude::*;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Rows handed on at a time, and the bytes of JSON text after which a chunk is full.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 32 << 20;

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
#[derive(Debug, Clone, Copy, Default)]
pub struct Passage {
    pub rows: usize,
    /// Lines with nothing on them.
    pub blank: usize,
}

/// The kinds of file, by what they are and not only by their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    JsonLines,
    JsonArray,
    Csv,
    Parquet,
    Ipc,
}

/// The kind of this file: its extension, and for JSON its first character.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
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

/// SHA-256 of the file, and for lines of JSON how many there are (for the progress bar).
pub fn fingerprint(path: &Path) -> Result<(String, Option<usize>)> {
    let lines = file_kind(path)? == FileKind::JsonLines;
    let (mut file, mut hash, mut count) = (open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| io_error("reading", path, e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        count += if lines { buffer[..n].iter().filter(|b| **b == b'\n').count() } else { 0 };
    }
    Ok((hex(&hash.finalize()), lines.then_some(count)))
}

/// Hands the rows of `path` to `take`, a chunk at a time and in order, at most `limit` of them.
pub fn for_each_chunk(
    path: &Path,
    limit: Option<usize>,
    mut take: impl FnMut(Vec<RawRow>) -> Result<()>,
) -> Result<Passage> {
    let limit = limit.unwrap_or(usize::MAX);
    let passage = match file_kind(path)? {
        FileKind::JsonLines => json_lines(path, limit, &mut take)?,
        FileKind::JsonArray => json_array(path, limit, &mut take)?,
        FileKind::Parquet => parquet(path, limit, &mut take)?,
        FileKind::Csv => frame_rows(path, csv(path, limit)?, 0, limit, false, &mut take)?,
        FileKind::Ipc => frame_rows(path, ipc(path, limit)?, 0, limit, true, &mut take)?,
    };
    if passage.rows == 0 {
        return Err(
            Error::user(format!("{}: the file holds no row", path.display())).hint("was it written completely?")
        );
    }
    Ok(passage)
}

const BOM: &[u8] = b"\xef\xbb\xbf";

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| io_error("reading", path, e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Error::user(format!("{}: is a folder, expected a file of rows", path.display())));
    }
    Ok(file)
}

type Take<'a> = &'a mut dyn FnMut(Vec<RawRow>) -> Result<()>;

fn json_lines(path: &Path, limit: usize, take: Take) -> Result<Passage> {
    let mut reader = BufReader::with_capacity(1 << 20, open(path)?);
    let mut passage = Passage::default();
    let (mut chunk, mut bytes, mut line) = (Vec::new(), 0, 0);
    while passage.rows < limit {
        let mut text = Vec::new();
        if reader.read_until(b'\n', &mut text).map_err(|e| io_error("reading", path, e))? == 0 {
            break;
        }
        line += 1;
        if line == 1 && text.starts_with(BOM) {
            text.drain(..BOM.len());
        }
        let text = String::from_utf8(text).map_err(|e| {
            Error::user(format!(
                "{}: not UTF-8 (byte {} of the line)",
                Place { path, line },
                e.utf8_error().valid_up_to() + 1
            ))
            .hint("convert the file with: iconv -f LATIN1 -t UTF-8")
        })?;
        if text.trim().is_empty() {
            passage.blank += 1;
            continue;
        }
        passage.rows += 1;
        bytes += text.len();
        chunk.push(RawRow { line, body: Body::Json(text) });
        if chunk.len() == CHUNK_ROWS || bytes > CHUNK_BYTES {
            take(std::mem::take(&mut chunk))?;
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        take(chunk)?;
    }
    Ok(passage)
}

fn json_array(path: &Path, limit: usize, take: Take) -> Result<Passage> {
    let mut reader = BufReader::with_capacity(1 << 20, open(path)?);
    if reader.fill_buf().map_err(|e| io_error("reading", path, e))?.starts_with(BOM) {
        reader.consume(BOM.len());
    }
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut array = ArrayRows { path, limit, take, passage: Passage::default(), failed: None };
    let end = serde::Deserializer::deserialize_seq(&mut json, &mut array);
    if let Some(e) = array.failed {
        return Err(e);
    }
    if array.passage.rows < limit {
        end.and_then(|()| json.end()).map_err(|e| {
            let row = array.passage.rows + 1;
            Error::user(format!("{}: bad JSON: {e} (row {row})", path.display()))
        })?;
    }
    Ok(array.passage)
}

/// Takes the elements of a JSON array one by one, so that the array never lies in memory whole.
struct ArrayRows<'a> {
    path: &'a Path,
    limit: usize,
    take: Take<'a>,
    passage: Passage,
    failed: Option<Error>,
}

impl<'de> Visitor<'de> for &mut ArrayRows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut chunk = Vec::new();
        while self.passage.rows < self.limit {
            let Some(value) = seq.next_element_seed(AnyJson)? else { break };
            self.passage.rows += 1;
            let line = self.passage.rows;
            match value {
                Value::Object(columns) => chunk.push(RawRow { line, body: Body::Columns(columns) }),
                other => {
                    let found = shorten(&other.to_string());
                    let place = Place { path: self.path, line };
                    self.failed = Some(Error::user(format!("{place}: expected a JSON object as row, found {found}")));
                    return Ok(());
                }
            }
            if chunk.len() == CHUNK_ROWS {
                self.hand_on(&mut chunk);
            }
        }
        self.hand_on(&mut chunk);
        // Past the limit the rest is read over, because serde_json wants an array read to its end.
        Ok(())
    }
}

impl ArrayRows<'_> {
    fn hand_on(&mut self, chunk: &mut Vec<RawRow>) {
        if self.failed.is_none() && !chunk.is_empty() {
            self.failed = (self.take)(std::mem::take(chunk)).err();
        }
        if self.failed.is_some() {
            self.limit = 0;
        }
    }
}

struct AnyJson;

impl<'de> DeserializeSeed<'de> for AnyJson {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        serde::Deserialize::deserialize(json)
    }
}

fn polars_error(path: &Path, e: PolarsError) -> Error {
    let text = e.to_string();
    Error::user(format!("{}: {}", path.display(), text.lines().next().unwrap_or_default()))
        .hint("is the file whole, and what its extension says?")
}

fn csv(path: &Path, limit: usize) -> Result<DataFrame> {
    // Every column is text: a guess of types would turn an answer `007` into 7.
    CsvReadOptions::default()
        .with_infer_schema_length(Some(0))
        .with_n_rows(Some(limit).filter(|l| *l != usize::MAX))
        .map_parse_options(|o| o.with_encoding(CsvEncoding::Utf8))
        .into_reader_with_file_handle(open(path)?)
        .finish()
        .map_err(|e| polars_error(path, e))
}

fn ipc(path: &Path, limit: usize) -> Result<DataFrame> {
    let limit = Some(limit).filter(|l| *l != usize::MAX);
    IpcReader::new(open(path)?).with_n_rows(limit).finish().map_err(|e| polars_error(path, e))
}

fn parquet(path: &Path, limit: usize, take: Take) -> Result<Passage> {
    let mut reader = ParquetReader::new(open(path)?);
    let total = reader.num_rows().map_err(|e| polars_error(path, e))?.min(limit);
    let metadata = reader.get_metadata().map_err(|e| polars_error(path, e))?.clone();
    let mut passage = Passage::default();
    while passage.rows < total {
        let mut reader = ParquetReader::new(open(path)?);
        reader.set_metadata(metadata.clone());
        let slice = (passage.rows, CHUNK_ROWS.min(total - passage.rows));
        let frame = reader.with_slice(Some(slice)).finish().map_err(|e| polars_error(path, e))?;
        if frame.height() == 0 {
            return Err(Error::user(format!("{}: ends after {} of {total} rows", path.display(), passage.rows)));
        }
        passage.rows += frame_rows(path, frame, passage.rows, usize::MAX, true, take)?.rows;
    }
    Ok(passage)
}

/// The rows of a frame, the first of which is row `before + 1` of the file. Columnar files give every message every key
/// of the column, so a null inside a list or struct means that the key was not there (`typed`).
fn frame_rows(path: &Path, frame: DataFrame, before: usize, limit: usize, typed: bool, take: Take) -> Result<Passage> {
    let height = frame.height().min(limit);
    let mut start = 0;
    while start < height {
        let part = frame.slice(start as i64, CHUNK_ROWS.min(height - start));
        let mut rows: Vec<Columns> = vec![Map::new(); part.height()];
        for column in part.columns() {
            let series = column.as_materialized_series();
            for (i, value) in series.iter().enumerate() {
                let line = before + start + i + 1;
                let value = json_of(value).map_err(|kind| {
                    Error::user(format!(
                        "{}: column `{}` has values of kind {kind}, which no row format uses",
                        Place { path, line },
                        column.name()
                    ))
                    .hint("write the column as text, numbers, lists or structs, or leave it out")
                })?;
                if !(typed && value.is_null()) {
                    rows[i].insert(column.name().to_string(), value);
                }
            }
        }
        let chunk = rows.into_iter().enumerate();
        take(
            chunk.map(|(i, columns)| RawRow { line: before + start + i + 1, body: Body::Columns(columns) }).collect(),
        )?;
        start += part.height();
    }
    Ok(Passage { rows: height, blank: 0 })
}

/// A polars value as JSON; `Err` is the name of a kind that has no JSON form.
fn json_of(value: AnyValue) -> Result<Value, String> {
    Ok(match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(s) => s.into(),
        AnyValue::StringOwned(s) => s.as_str().into(),
        AnyValue::Int8(n) => n.into(),
        AnyValue::Int16(n) => n.into(),
        AnyValue::Int32(n) => n.into(),
        AnyValue::Int64(n) => n.into(),
        AnyValue::UInt8(n) => n.into(),
        AnyValue::UInt16(n) => n.into(),
        AnyValue::UInt32(n) => n.into(),
        AnyValue::UInt64(n) => n.into(),
        AnyValue::Float32(x) => f64::from(x).into(),
        AnyValue::Float64(x) => x.into(),
        AnyValue::List(series) => Value::Array(series.iter().map(json_of).collect::<Result<_, _>>()?),
        AnyValue::Struct(..) | AnyValue::StructOwned(_) => {
            let names: Vec<String> = match &value {
                AnyValue::Struct(_, _, fields) => fields.iter().map(|f| f.name.to_string()).collect(),
                AnyValue::StructOwned(payload) => payload.1.iter().map(|f| f.name.to_string()).collect(),
                _ => Vec::new(),
            };
            let mut values = Vec::new();
            value._materialize_struct_av(&mut values);
            let pairs = names.into_iter().zip(values).map(|(name, v)| Ok((name, json_of(v)?)));
            let pairs = pairs.collect::<Result<Vec<_>, String>>()?;
            Value::Object(pairs.into_iter().filter(|(_, v)| !v.is_null()).collect())
        }
        other => return Err(other.dtype().to_string()),
    })
}
