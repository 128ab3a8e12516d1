//! Divides files into segments, each of which is hashed and tokenised separately.
//!
//! Tokenising a huge file can therefore resume at the segment where it was interrupted, and rows added at the end do
//! not change the earlier segments.

use super::csv::{self, CsvState};
use super::file::{FileKind, open};
use super::parquet::parquet_rows;
use super::read::file_kind;
use super::segment::{FileLayout, FileSegment};
use crate::error::Result;
use crate::fsutil::{hex, io_error};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Minimum size in bytes of a segment of lines; it ends with the line or record in which it reaches this size.
const BYTES: u64 = 64 << 20;

/// Number of rows in a segment of a Parquet file.
const ROWS: u64 = 1 << 17;

/// Reads the file once, hashes it and finds its segments. `progress` gets the number of bytes read since its last call.
pub fn layout(path: &Path, mut progress: impl FnMut(u64)) -> Result<FileLayout> {
    layout_by(path, BYTES, &mut progress)
}

fn layout_by(path: &Path, target: u64, progress: &mut dyn FnMut(u64)) -> Result<FileLayout> {
    let kind = file_kind(path)?;
    let mut cut = match kind {
        FileKind::JsonLines => Some(SegmentCutter::new(None, Vec::new(), 0, target)),
        FileKind::Csv => {
            let (header, end) = csv::header(path)?;
            Some(SegmentCutter::new(Some(CsvState::default()), header, end, target))
        }
        _ => None,
    };
    let (mut file, mut whole, mut bytes) = (open(path)?, Sha256::new(), 0u64);
    let mut buffer = vec![0u8; 4 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| io_error("reading", path, e))?;
        if n == 0 {
            break;
        }
        let part = &buffer[..n];
        match &mut cut {
            Some(cut) => drop(rayon::join(|| whole.update(part), || cut.feed(bytes, part))),
            None => whole.update(part),
        }
        bytes += n as u64;
        progress(n as u64);
    }
    let sha256 = hex(&whole.finalize());
    let segments = match cut {
        Some(cut) => cut.finish(bytes),
        None if kind == FileKind::Parquet => {
            let rows = parquet_rows(path)? as u64;
            let part = |start: u64| {
                let end = rows.min(start + ROWS);
                let (before, lines) = (start as usize, Some((end - start) as usize));
                FileSegment { start, end, before, lines, sha256: format!("{sha256}:{start}-{end}") }
            };
            (0..rows.max(1)).step_by(ROWS as usize).map(part).collect()
        }
        None => vec![FileSegment { sha256: sha256.clone(), ..FileSegment::whole() }],
    };
    Ok(FileLayout { kind, bytes, sha256, segments })
}

/// Finds the segments of a file of lines while it is read.
struct SegmentCutter {
    /// Set for CSV, where a record may hold line feeds.
    csv: Option<CsvState>,
    /// The header of a CSV file, which is included in every segment's hash because the segment's meaning depends on it.
    header: Vec<u8>,
    target: u64,
    hash: Sha256,
    start: u64,
    before: usize,
    lines: usize,
    /// Whether the current line has any content so far.
    open: bool,
    done: Vec<FileSegment>,
}

impl SegmentCutter {
    fn new(csv: Option<CsvState>, header: Vec<u8>, start: u64, target: u64) -> Self {
        let hash = Sha256::new_with_prefix(&header);
        Self { csv, header, target, hash, start, before: 0, lines: 0, open: false, done: Vec::new() }
    }

    /// Processes the next bytes of the file, which begin at position `at`.
    fn feed(&mut self, at: u64, mut bytes: &[u8]) {
        let mut at = at;
        if at < self.start && self.done.is_empty() {
            // Skip the header of a CSV file.
            let skip = ((self.start - at) as usize).min(bytes.len());
            (bytes, at) = (&bytes[skip..], at + skip as u64);
        }
        let mut from = 0;
        for (i, byte) in bytes.iter().enumerate() {
            let ended = match &mut self.csv {
                Some(state) => state.step(*byte),
                None => *byte == b'\n',
            };
            if !ended {
                self.open |= !(self.csv.is_some() && byte.is_ascii_whitespace());
                continue;
            }
            // An empty line of JSON counts as a line; an empty record of CSV does not, because reading skips it.
            self.lines += usize::from(self.open || self.csv.is_none());
            self.open = false;
            let end = at + i as u64 + 1;
            if end - self.start >= self.target {
                self.hash.update(&bytes[from..=i]);
                from = i + 1;
                self.close(end);
            }
        }
        self.hash.update(&bytes[from..]);
    }

    fn close(&mut self, end: u64) {
        let hash = std::mem::replace(&mut self.hash, Sha256::new_with_prefix(&self.header));
        self.done.push(FileSegment {
            start: self.start,
            end,
            before: self.before,
            lines: Some(self.lines),
            sha256: hex(&hash.finalize()),
        });
        self.before += self.lines;
        (self.start, self.lines) = (end, 0);
    }

    fn finish(mut self, bytes: u64) -> Vec<FileSegment> {
        if bytes > self.start || self.done.is_empty() {
            self.lines += usize::from(self.open);
            self.close(bytes.max(self.start));
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::raw_row::{ChunkSink, ColumnSelection};
    use crate::data::source::read::read;

    fn lines_of(path: &Path, layout: &FileLayout) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for segment in &layout.segments {
            let take: ChunkSink = &mut |chunk| {
                for raw in chunk {
                    let line = raw.line;
                    found.push((line, serde_json::to_string(&raw.columns(path)?).unwrap()));
                }
                Ok(())
            };
            let passage = read(path, layout.kind, segment, ColumnSelection::Every, usize::MAX, take).unwrap();
            let lines = segment.lines.unwrap();
            assert!(passage.rows <= lines && lines <= passage.rows + passage.blank);
        }
        found
    }

    #[test]
    fn segments_hold_every_row_once_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (0..500).map(|i| format!("{{\"text\":\"{i}\"}}\n{}", ["", "\n"][i % 2])).collect();
        let csv: String =
            (0..500).map(|i| format!("\"row {i}\nand \"\"more\"\"\",{i}\r\n{}", ["", "\n"][i % 2])).collect();
        for (name, text) in [("a.jsonl", lines.clone() + "{\"text\":\"last\"}"), ("a.csv", format!("text,n\r\n{csv}"))]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, &text).unwrap();
            let whole = layout_by(&path, u64::MAX, &mut |_| {}).unwrap();
            let parts = layout_by(&path, 999, &mut |_| {}).unwrap();
            assert_eq!((whole.segments.len(), parts.segments.len() > 5), (1, true));
            assert_eq!(whole.lines(), parts.lines(), "{name}");
            assert_eq!(lines_of(&path, &whole), lines_of(&path, &parts), "{name}");
            assert!(lines_of(&path, &whole).len() >= 500, "{name}");
            // Rows at the end change the last segment only.
            std::fs::write(&path, text.clone() + &text[text.len() / 2..]).unwrap();
            let longer = layout_by(&path, 999, &mut |_| {}).unwrap();
            let kept = parts.segments.len() - 1;
            assert_eq!(longer.segments[..kept], parts.segments[..kept], "{name}");
            assert_ne!(longer.sha256, parts.sha256);
        }
    }
}
