//! Rows written as files: JSON Lines, or Parquet through polars.

use super::columnar::polars_error;
use crate::error::{Error, Result};
use crate::fsutil::write_atomic;
use polars::prelude::*;
use serde_json::Value;
use std::io::{Cursor, Write};
use std::num::NonZeroUsize;
use std::path::Path;

/// Writes rows as the name of the file says: `.jsonl`, `.ndjson` or `.parquet`. The file appears whole.
///
/// The columns of a Parquet file are those of all rows together, in the order in which they come; their types are found
/// out from every row, so that a value of another type than in the row before is an error and not a null.
pub fn write(path: &Path, rows: &[Value]) -> Result<()> {
    match super::extension(path).as_str() {
        "jsonl" | "ndjson" => write_atomic(path, |out| rows.iter().try_for_each(|row| writeln!(out, "{row}"))),
        "parquet" => parquet(path, rows),
        _ => Err(Error::user(format!("{}: rows are written as JSON Lines or Parquet", path.display()))
            .hint("give a name that ends in .jsonl or .parquet")),
    }
}

fn parquet(path: &Path, rows: &[Value]) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::user(format!("{}: no row to write, and a Parquet file needs its columns", path.display()))
            .hint("write .jsonl"));
    }
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let every = NonZeroUsize::new(rows.len());
    let reader = JsonReader::new(Cursor::new(text)).with_json_format(JsonFormat::JsonLines).infer_schema_len(every);
    let mut frame = reader.finish().map_err(|e| polars_error(path, e))?;
    if frame.height() != rows.len() {
        return Err(Error::bug(format!("{}: {} rows became {}", path.display(), rows.len(), frame.height())));
    }
    let mut failed = None;
    write_atomic(path, |out| {
        ParquetWriter::new(out).finish(&mut frame).map(drop).map_err(|e| {
            failed = Some(polars_error(path, e));
            std::io::Error::other("the columns cannot be written")
        })
    })
    .map_err(|e| failed.take().unwrap_or(e))
}
