//! Reads the rows of a task: files of rows as training reads them, and plain text.

use crate::data::source::{self, RowColumns, RowPlace};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::recipe::suite_file::SwappedTerms;
use serde_json::Value;
use std::path::Path;

/// Name of the column with the term of a group.
const TERM: &str = "term";
/// Name of the column with the group's name.
pub const GROUP: &str = "group";

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

/// Repeats each row for each place in the lists of terms, with the term of every group there in a column named after the group. If
/// `by_group`, also for each group, whose name and term are then in the columns `group` and `term`.
///
/// Errors: a row has such a column already.
pub fn swapped(path: &Path, rows: Vec<TaskRow>, terms: &SwappedTerms, by_group: bool) -> Result<Vec<TaskRow>> {
    let count = terms.values().next().map_or(0, Vec::len);
    let added: Vec<&str> = terms
        .keys()
        .map(String::as_str)
        .chain(if by_group { [TERM, GROUP].as_slice() } else { &[] }.iter().copied())
        .collect();
    let mut made = Vec::with_capacity(rows.len() * count);
    for row in rows {
        if let Some(name) = added.iter().find(|name| row.columns.contains_key(**name)) {
            let taken = Error::user(format!("the row has a column `{name}`, which `swap` adds"));
            return at(path, row.line, Err(taken.hint("give the group another name, or rename the column")));
        }
        for place in 0..count {
            let mut columns = row.columns.clone();
            for (group, terms) in terms {
                columns.insert(group.clone(), Value::String(terms[place].clone()));
            }
            if !by_group {
                made.push(TaskRow { line: row.line, columns });
                continue;
            }
            for (group, terms) in terms {
                let mut columns = columns.clone();
                columns.insert(GROUP.into(), Value::String(group.clone()));
                columns.insert(TERM.into(), Value::String(terms[place].clone()));
                made.push(TaskRow { line: row.line, columns });
            }
        }
    }
    Ok(made)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_repeated_for_each_term_and_group() {
        let terms = SwappedTerms::from(
            [("women", ["sister", "mother"]), ("men", ["brother", "father"])]
                .map(|(name, terms)| (name.to_string(), terms.map(String::from).to_vec())),
        );
        let row = |columns: Value| TaskRow { line: 3, columns: columns.as_object().unwrap().clone() };
        let made = swapped(Path::new("a.jsonl"), vec![row(json!({"job": "nurse"}))], &terms, true).unwrap();
        let seen: Vec<(&str, &str)> = made
            .iter()
            .map(|row| (row.columns["group"].as_str().unwrap(), row.columns["term"].as_str().unwrap()))
            .collect();
        assert_eq!(seen, [("men", "brother"), ("women", "sister"), ("men", "father"), ("women", "mother")]);
        assert!(made.iter().all(|row| row.line == 3 && row.columns["job"] == "nurse"));
        let pairs = swapped(Path::new("a.jsonl"), vec![row(json!({"job": "nurse"}))], &terms, false).unwrap();
        assert_eq!(pairs.len(), 2);
        assert_eq!((&pairs[1].columns["women"], &pairs[1].columns["men"]), (&json!("mother"), &json!("father")));
        let told = swapped(Path::new("a.jsonl"), vec![row(json!({"men": 1}))], &terms, false).unwrap_err().to_string();
        assert!(told.contains("a.jsonl:3: the row has a column `men`"), "{told}");
    }
}
