//! Parquet and Arrow IPC, a group of rows at a time.

use super::{Body, CHUNK_ROWS, Columns, Passage, Place, RawRow, Segment, Take, open};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use polars::prelude::*;
use polars_arrow::io::ipc::read as arrow;
use serde_json::{Map, Value};
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// Bytes of a Parquet file's columns, unpacked, that are read at a time.
const SLICE_BYTES: usize = 32 << 20;

pub(super) fn polars_error(path: &Path, e: PolarsError) -> Error {
    let text = e.to_string();
    Error::user(format!("{}: {}", path.display(), text.lines().next().unwrap_or_default()))
        .hint("is the file whole, and what its extension says?")
}

/// How many rows a Parquet file says it has.
pub(super) fn parquet_rows(path: &Path) -> Result<usize> {
    ParquetReader::new(open(path)?).num_rows().map_err(|e| polars_error(path, e))
}

/// The rows of a part of a Parquet file; `start` and `end` of the part count rows.
pub(super) fn parquet(path: &Path, part: &Segment, limit: usize, take: Take) -> Result<Passage> {
    let mut reader = ParquetReader::new(open(path)?);
    let total = reader.num_rows().map_err(|e| polars_error(path, e))?;
    let metadata = reader.get_metadata().map_err(|e| polars_error(path, e))?.clone();
    let end = usize::try_from(part.end).unwrap_or(usize::MAX).min(total);
    let (first, mut passage) = (part.start as usize, Passage::default());
    let rows = end.saturating_sub(first).min(limit);
    while passage.rows < rows {
        let at = first + passage.rows;
        // Slices end where a row group ends, so that none is unpacked twice more than its size asks for.
        let (mut begins, mut slice) = (0, rows - passage.rows);
        for group in &metadata.row_groups {
            let next = begins + group.num_rows();
            if (begins..next).contains(&at) {
                let row_bytes = (group.total_byte_size() / group.num_rows().max(1)).max(1);
                slice = slice.min(next - at).min((SLICE_BYTES / row_bytes).max(64));
            }
            begins = next;
        }
        let mut reader = ParquetReader::new(open(path)?);
        reader.set_metadata(metadata.clone());
        let frame = reader.with_slice(Some((at, slice))).finish().map_err(|e| polars_error(path, e))?;
        let columns: Vec<Series> = frame.columns().iter().map(|c| c.as_materialized_series().clone()).collect();
        let read = rows_of(path, &columns, at, usize::MAX, true, take)?;
        if read == 0 {
            return Err(Error::user(format!("{}: ends after {at} of {total} rows", path.display())));
        }
        passage.rows += read;
    }
    Ok(passage)
}

/// The rows of an Arrow IPC file or stream (which `datasets` writes), a record batch at a time.
pub(super) fn ipc(path: &Path, limit: usize, take: Take) -> Result<Passage> {
    let mut file = open(path)?;
    let mut magic = [0u8; 6];
    let n = file.read(&mut magic).map_err(|e| io_error("reading", path, e))?;
    file.rewind().map_err(|e| io_error("reading", path, e))?;
    let wrong = |e| polars_error(path, e);
    let mut passage = Passage::default();
    let mut batch = |names: &ArrowSchema, arrays: Vec<ArrayRef>| -> Result<bool> {
        let series = names.iter_values().zip(arrays).map(|(field, array)| Series::try_from((field, array)));
        let columns = series.collect::<PolarsResult<Vec<_>>>().map_err(wrong)?;
        passage.rows += rows_of(path, &columns, passage.rows, limit - passage.rows, true, take)?;
        Ok(passage.rows < limit)
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    if n == 6 && &magic == b"ARROW1" {
        let metadata = arrow::read_file_metadata(&mut file).map_err(wrong)?;
        let schema = metadata.schema.clone();
        for chunk in arrow::FileReader::new(file, metadata, None, None) {
            if !batch(&schema, chunk.map_err(wrong)?.into_arrays())? {
                break;
            }
        }
    } else {
        let metadata = arrow::read_stream_metadata(&mut file).map_err(wrong)?;
        let schema = metadata.schema.clone();
        for state in arrow::StreamReader::new(file, metadata, None) {
            let arrow::StreamState::Some(chunk) = state.map_err(wrong)? else { break };
            if !batch(&schema, chunk.into_arrays())? {
                break;
            }
        }
    }
    Ok(passage)
}

/// The rows of some columns, the first of which is row `before + 1` of the file. Columnar files give every message every
/// key of the column, so a null inside a list or struct means that the key was not there (`typed`).
pub(super) fn rows_of(
    path: &Path,
    columns: &[Series],
    before: usize,
    limit: usize,
    typed: bool,
    take: Take,
) -> Result<usize> {
    let height = columns.first().map_or(0, |c| c.len()).min(limit);
    let mut start = 0;
    while start < height {
        let size = CHUNK_ROWS.min(height - start);
        let mut rows: Vec<Columns> = vec![Map::new(); size];
        for column in columns {
            for (i, value) in column.slice(start as i64, size).rechunk().iter().enumerate() {
                let value = json_of(value).map_err(|kind| {
                    Error::user(format!(
                        "{}: column `{}` has values of kind {kind}, which no row format uses",
                        Place { path, line: before + start + i + 1 },
                        column.name()
                    ))
                    .hint("write the column as text, numbers, lists or structs, or leave it out")
                })?;
                if !(typed && value.is_null()) {
                    rows[i].insert(column.name().to_string(), value);
                }
            }
        }
        let line = |i: usize| before + start + i + 1;
        let chunk = rows.into_iter().enumerate();
        take(chunk.map(|(i, columns)| RawRow { line: line(i), body: Body::Columns(columns) }).collect())?;
        start += size;
    }
    Ok(height)
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
