//! Parts of a file that are hashed and tokenised separately.

use super::file::FileKind;
use serde::{Deserialize, Serialize};

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSegment {
    /// Position in bytes (JSON Lines, CSV) or rows (Parquet); files of other kinds have one segment.
    pub start: u64,
    /// The position after the last byte or row, in the unit of `start`.
    pub end: u64,
    /// Number of lines (or rows) of the file before the segment.
    pub before: usize,
    /// Number of lines or rows in the segment, if known without parsing.
    pub lines: Option<usize>,
    /// SHA-256 of the content that the segment is read from.
    pub sha256: String,
}

impl FileSegment {
    /// A segment of the whole file, with unknown size and hash.
    pub fn whole() -> Self {
        Self { start: 0, end: u64::MAX, before: 0, lines: None, sha256: String::new() }
    }
}

/// The segments of a file, and the hash of the whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLayout {
    /// The kind of the file.
    pub kind: FileKind,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The segments in order.
    pub segments: Vec<FileSegment>,
}

impl FileLayout {
    /// Returns the total number of lines or rows, if known.
    pub fn lines(&self) -> Option<usize> {
        self.segments.iter().map(|s| s.lines).sum()
    }
}
