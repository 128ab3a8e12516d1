//! Reads the rows of a task: files of rows as training reads them, and plain text.

use crate::data::source::{self, RowColumns, RowPlace};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use serde_json::Value;
use std::path::Path;

/// A row with its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// The line or number in the file, from 1.
    pub line: usize,
    /// Its columns.
    pub columns: RowColumns,
}

/// Reads the rows of a file, a folder or a pattern, at most `limit`. A .txt file is one row with the column `text`.
///
/// Errors: a file cannot be read, or there are no rows.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<TaskRow>> {
    let mut rows = Vec::new();
    for file in source::files(path)? {
        let room = limit.map_or(usize::MAX, |limit| limit - rows.len());
        if room == 0 {
            break;
        }
        if file.extension().is_some_and(|e| e == "txt") {
            let text = fsutil::read_to_string(&file)?;
            if text.trim().is_empty() {
                return Err(source::no_rows_error(&file));
            }
            let columns = RowColumns::from_iter([("text".to_string(), Value::String(text))]);
            rows.push(TaskRow { line: 1, columns });
            continue;
        }
        source::for_each_chunk(&file, Some(room), |chunk| {
            for raw in chunk {
                let line = raw.line;
                rows.push(TaskRow { line, columns: raw.columns(&file)? });
            }
            Ok(())
        })?;
    }
    Ok(rows)
}

/// Adds the place of a row to the error of what is computed from it.
pub fn at<T>(path: &Path, line: usize, result: Result<T>) -> Result<T> {
    result.context(|| RowPlace { path, line })
}

/// Returns the texts that a value stands for: one, or those of a list.
pub fn texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// Returns a value as text. Fails for null, lists and maps.
pub fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) => Ok(value.to_string()),
        // As Python writes it.
        Value::Bool(truth) => Ok(if *truth { "True" } else { "False" }.into()),
        _ => Err(Error::user(format!("expected text, found {}", fsutil::excerpt(&value.to_string())))),
    }
}
