//! Reads JSON Lines files. Rows are passed on as text; blank lines are skipped and counted.

use super::file::{BOM, open};
use super::raw_row::{CHUNK_BYTES, CHUNK_ROWS, ChunkSink, RawRow, ReadCounts, RowBody, RowPlace};
use super::segment::FileSegment;
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Reads the rows of a part of a JSON Lines file.
pub(super) fn read(path: &Path, part: &FileSegment, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(part.start)).map_err(|e| io_error("reading", path, e))?;
    let mut reader = BufReader::with_capacity(1 << 20, file.take(part.end - part.start));
    let mut passage = ReadCounts::default();
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
                RowPlace { path, line },
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
        chunk.push(RawRow { line, body: RowBody::Line(text) });
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
