//! Lines of JSON, and a file that is one array of rows.

use super::{BOM, Body, CHUNK_BYTES, CHUNK_ROWS, Passage, RawRow, Segment, Take, open, shorten};
use crate::data::record::Place;
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Rows of an array handed on at a time: parsed already, they take more room than text.
const ARRAY_ROWS: usize = 1024;

/// The rows of a part of a JSON Lines file.
pub(super) fn lines(path: &Path, part: &Segment, limit: usize, take: Take) -> Result<Passage> {
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(part.start)).map_err(|e| io_error("reading", path, e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file.take(part.end - part.start));
    let mut passage = Passage::default();
    let (mut chunk, mut bytes, mut line) = (Vec::new(), 0, part.before);
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

/// The rows of a file that is one JSON array.
pub(super) fn array(path: &Path, limit: usize, take: Take) -> Result<Passage> {
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
            if chunk.len() == ARRAY_ROWS {
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
