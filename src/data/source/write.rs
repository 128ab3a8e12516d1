//! Writes rows to files: JSON Lines row by row, or Parquet with polars.

use super::decoder::polars_error;
use super::file::extension;
use crate::error::{Error, Result};
use crate::fsutil::{FileAccess, io_error, write_atomic_for};
use crate::json;
use polars::prelude::*;
use serde_json::Value;
use std::io::{Cursor, Write};
use std::num::NonZeroUsize;
use std::path::Path;

/// Writes rows to a file that only its owner can read. The extension decides the format: `.jsonl`, `.ndjson` or
/// `.parquet`. The file is written under a temporary name and renamed.
///
/// The columns of a Parquet file are those of all rows, in order of first occurrence. Their types are inferred from all
/// rows, so that values of different types in a column are an error, not nulls.
pub fn write_for_owner(path: &Path, rows: &[Value]) -> Result<()> {
    write_rows(FileAccess::OwnerOnly, path, |put| rows.iter().try_for_each(put))
}

/// As [`write_for_owner`], but with the usual permissions, and for rows that `fill` passes one by one. JSON Lines are
/// written immediately; the rows of a Parquet file are kept in memory.
pub fn write_each(path: &Path, fill: impl FnOnce(&mut dyn FnMut(&Value) -> Result<()>) -> Result<()>) -> Result<()> {
    write_rows(FileAccess::Umask, path, fill)
}

fn write_rows(
    access: FileAccess,
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&Value) -> Result<()>) -> Result<()>,
) -> Result<()> {
    match extension(path).as_str() {
        "jsonl" | "ndjson" => {
            let mut failed = None;
            let lines = write_atomic_for(access, path, |out| {
                let mut put =
                    |row: &Value| writeln!(out, "{}", json::to_text(row)).map_err(|e| io_error("writing", path, e));
                fill(&mut put).map_err(|e| {
                    failed = Some(e);
                    std::io::Error::other("the rows ended in an error")
                })
            });
            lines.map_err(|e| failed.take().unwrap_or(e))
        }
        "parquet" => {
            let (mut text, mut rows) = (Vec::new(), 0);
            fill(&mut |row| {
                rows += 1;
                let line = row.to_string();
                if json::restore_numbers(line.clone()) != line {
                    return Err(Error::user(format!(
                        "{}: row {rows} has a number that a column of a Parquet file cannot store",
                        path.display()
                    ))
                    .hint("write .jsonl, or the number as text"));
                }
                writeln!(text, "{line}").map_err(|e| io_error("keeping rows of", path, e))
            })?;
            parquet(access, path, text, rows)
        }
        _ => Err(Error::user(format!("{}: rows are written as JSON Lines or Parquet", path.display()))
            .hint("give a name that ends in .jsonl or .parquet")),
    }
}

fn parquet(access: FileAccess, path: &Path, lines: Vec<u8>, rows: usize) -> Result<()> {
    let Some(every) = NonZeroUsize::new(rows) else {
        return Err(Error::user(format!(
            "{}: there is no row to write, and a Parquet file cannot be written without columns",
            path.display()
        ))
        .hint("write .jsonl"));
    };
    let reader = JsonReader::new(Cursor::new(lines)).with_json_format(JsonFormat::JsonLines);
    let mut frame = reader.infer_schema_len(Some(every)).finish().map_err(|e| polars_error(path, e))?;
    if frame.height() != rows {
        return Err(Error::bug(format!("{}: {rows} rows became {}", path.display(), frame.height())));
    }
    let mut failed = None;
    write_atomic_for(access, path, |out| {
        ParquetWriter::new(out).finish(&mut frame).map(drop).map_err(|e| {
            failed = Some(polars_error(path, e));
            std::io::Error::other("the columns cannot be written")
        })
    })
    .map_err(|e| failed.take().unwrap_or(e))
}
