//! Kinds of files of rows, their extensions, and how they are opened.

use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;

/// The kinds of files; for JSON, by content and not only by the extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// One JSON object per line.
    JsonLines,
    /// One list of objects, or objects of several lines each.
    JsonValues,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header, without quotes.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// An Arrow IPC file or stream.
    Ipc,
}

/// The extensions of files of rows.
pub const EXTENSIONS: [&str; 9] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "ipc", "feather"];

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

pub(super) fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

pub(super) fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| io_error("reading", path, e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Error::user(format!("{}: is a folder, expected a file of rows", path.display())));
    }
    Ok(file)
}
