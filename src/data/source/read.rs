//! Reads the rows of a file of any kind, one chunk at a time.

use super::file::{FileKind, extension};
use super::raw_row::{ChunkSink, ColumnSelection, RawRow, ReadCounts};
use super::segment::FileSegment;
use super::{csv, ipc, lines, parquet, tsv, values};
use crate::error::{Error, Result};
use std::path::Path;

/// Returns the kind of a file, by its extension and, for JSON, by its first value. Fails for unknown extensions.
pub fn file_kind(path: &Path) -> Result<FileKind> {
    match extension(path).as_str() {
        "csv" => Ok(FileKind::Csv),
        "tsv" => Ok(FileKind::Tsv),
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
            "known: .jsonl, .json, .csv, .tsv, .parquet, .arrow, .ipc, .feather; the extension must match the content",
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
        FileKind::Tsv => tsv::read(path, limit, take),
        FileKind::Parquet => parquet::read(path, part, wanted, limit, take),
        FileKind::Ipc => ipc::read(path, wanted, limit, take),
    }
}
