//! Reads TSV files: one record per line, fields separated by tabs, the first line names the columns. Quotes are text, as in the
//! published files of benchmarks (GLUE). Every column is text.

use super::file::{BOM, open};
use super::raw_row::{CHUNK_BYTES, CHUNK_ROWS, ChunkSink, RawRow, ReadCounts, RowBody, RowColumns, RowPlace};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Reads at most `limit` rows of the file.
///
/// Errors: two columns have one name, a line has more or fewer fields than the first, text that is not UTF-8.
pub(super) fn read(path: &Path, limit: usize, take: ChunkSink) -> Result<ReadCounts> {
    let mut reader = BufReader::with_capacity(1 << 20, open(path)?);
    let (mut counts, mut chunk, mut bytes, mut line) = (ReadCounts::default(), Vec::new(), 0, 0);
    let mut names: Option<Vec<String>> = None;
    while counts.rows < limit {
        let mut text = Vec::new();
        if reader.read_until(b'\n', &mut text).map_err(|e| io_error("reading", path, e))? == 0 {
            break;
        }
        line += 1;
        let place = RowPlace { path, line };
        let text = text.strip_prefix(BOM).filter(|_| line == 1).unwrap_or(&text);
        let text = std::str::from_utf8(text).map_err(|_| {
            Error::user(format!("{place}: not UTF-8")).hint("convert the file with: iconv -f LATIN1 -t UTF-8")
        })?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            counts.blank += 1;
            continue;
        }
        let fields: Vec<String> = text.split('\t').map(str::to_string).collect();
        let Some(names) = &names else {
            let twice = fields.iter().enumerate().find(|(i, name)| fields[..*i].contains(name));
            if let Some((_, name)) = twice {
                return Err(Error::user(format!("{place}: two columns have the name {name}"))
                    .hint("give each column a name of its own"));
            }
            names = Some(fields);
            continue;
        };
        if fields.len() != names.len() {
            let (found, expected) = (fields.len(), names.len());
            return Err(Error::user(format!("{place}: {found} fields, the first line names {expected} columns"))
                .hint("fields are separated by one tab, and have no tab or line break inside"));
        }
        counts.rows += 1;
        bytes += text.len();
        let columns: RowColumns = names.iter().cloned().zip(fields.into_iter().map(Value::String)).collect();
        chunk.push(RawRow { line, body: RowBody::Columns(columns) });
        if chunk.len() == CHUNK_ROWS || bytes > CHUNK_BYTES {
            take(std::mem::take(&mut chunk))?;
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        take(chunk)?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::for_each_chunk;

    fn rows(text: &str) -> Result<Vec<(usize, Value)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.tsv");
        std::fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        for_each_chunk(&path, None, |chunk| {
            for row in chunk {
                found.push((row.line, Value::Object(row.columns(&path)?)));
            }
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn quotes_are_text_and_lines_are_counted() {
        let found = rows("\u{feff}sentence\tlabel\r\n5\" pipe, \"new\t1\n\n\t0\n").unwrap();
        let expected = [
            (2, serde_json::json!({"sentence": "5\" pipe, \"new", "label": "1"})),
            (4, serde_json::json!({"sentence": "", "label": "0"})),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_lines_are_named() {
        let told = |text: &str| rows(text).unwrap_err().to_string();
        assert!(told("a\tb\n1\t2\n1\n").contains("rows.tsv:3: 1 fields, the first line names 2 columns"));
        assert!(told("a\ta\n1\t2\n").contains("rows.tsv:1: two columns have the name a"));
        assert!(told("a\tb\n").contains("the file has no rows"));
    }
}
