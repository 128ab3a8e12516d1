//! Reads the rows of a task: files of rows as training reads them, and plain text.

use crate::data::rows::RowTemplate;
use crate::data::source::{self, RowColumns, RowPlace};
use crate::error::{Context, Error, Result};
use crate::fsutil;
use crate::json;
use crate::recipe::suite_file::{RowLimit, SuiteTask, SwappedTerms};
use serde_json::Value;
use std::path::Path;

/// What messages call the examples that a suite gives itself.
pub const GIVEN: &str = "few_shot.examples";

/// Name of the column with a row's file, of a folder or pattern.
const FILE: &str = "file";
/// Name of the column with the term of a group.
const TERM: &str = "term";
/// Name of the column with the group's name.
pub const GROUP: &str = "group";

/// Says which rows of a file are asked, and with which columns.
#[derive(Debug, Clone, Copy)]
pub struct RowReader<'a> {
    /// The lists inside a row of the file whose items are the rows, from the outside in; empty: the row itself.
    pub lists: &'a [String],
    /// Only rows for which this is true.
    pub only: Option<&'a RowTemplate>,
    /// Columns that are computed, in order.
    pub columns: &'a [(String, RowTemplate)],
}

/// A row with its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// The line or number in the file, from 1.
    pub line: usize,
    /// Its columns.
    pub columns: RowColumns,
}

impl<'a> RowReader<'a> {
    /// Returns that of a task.
    pub fn of(task: &'a SuiteTask) -> Self {
        Self { lists: &task.rows, only: task.only.as_ref(), columns: &task.columns }
    }

    /// Reads the rows of a file, a folder or a pattern as the task wants them, as many as `limit` says. A .txt file is one row with the column `text`.
    /// Rows of a folder or pattern have a column `file`.
    ///
    /// Errors: a file cannot be read, there are no rows, or a template of `where` or `columns` fails.
    pub fn read(&self, path: &Path, limit: Option<RowLimit>) -> Result<Vec<TaskRow>> {
        let mut rows = Vec::new();
        let first = RowLimit::first(limit);
        let selected = self.only.is_some() || !self.lists.is_empty();
        let files = source::files(path)?;
        let several = files.len() != 1 || files[0] != path;
        for file in files {
            let room = first.map_or(usize::MAX, |first| first - rows.len());
            if room == 0 {
                break;
            }
            for (number, mut row) in
                self.file_rows(&file, if selected { None } else { Some(room) })?.into_iter().enumerate()
            {
                // The rows of a document have no lines of their own.
                let line = if self.lists.is_empty() { row.line } else { number + 1 };
                if several && !row.columns.contains_key(FILE) {
                    row.columns.insert(FILE.into(), file.display().to_string().into());
                }
                let made = || Ok(if self.wanted(&row.columns)? { Some(self.with_columns(row.columns)?) } else { None });
                if let Some(columns) = at(&file, line, made())? {
                    rows.push(TaskRow { line, columns });
                }
                if rows.len() == first.unwrap_or(usize::MAX) {
                    break;
                }
            }
        }
        if rows.is_empty() {
            return Err(Error::user(format!("{}: no row is asked", path.display()))
                .hint("`where` is false for all rows, or the lists that `rows` names are empty"));
        }
        Ok(RowLimit::keep(limit, rows))
    }

    /// Reads all rows of a file, or the first `room`.
    fn file_rows(&self, file: &Path, room: Option<usize>) -> Result<Vec<TaskRow>> {
        let mut found = Vec::new();
        match file.extension().and_then(|e| e.to_str()) {
            Some("txt") => {
                let text = fsutil::read_to_string(file)?;
                if text.trim().is_empty() {
                    return Err(source::no_rows_error(file));
                }
                let columns = RowColumns::from_iter([("text".to_string(), Value::String(text))]);
                found.push(TaskRow { line: 1, columns });
            }
            Some("json") if let Some(whole) = document(file)? => found = whole,
            _ => {
                source::for_each_chunk(file, room, |chunk| {
                    for raw in chunk {
                        let line = raw.line;
                        found.push(TaskRow { line, columns: raw.columns(file)? });
                    }
                    Ok(())
                })?;
            }
        }
        if self.lists.is_empty() {
            return Ok(found);
        }
        let mut inner = Vec::new();
        for row in found {
            at(file, row.line, unfold(RowColumns::new(), row.columns, self.lists, &mut inner))?;
        }
        Ok(inner.into_iter().map(|columns| TaskRow { line: 0, columns }).collect())
    }

    /// Returns whether a row is asked.
    fn wanted(&self, columns: &RowColumns) -> Result<bool> {
        let Some(only) = self.only else { return Ok(true) };
        match only.value(columns)? {
            Value::Bool(wanted) => Ok(wanted),
            other => Err(Error::user(format!(
                "`where`: expected true or false, found {}",
                fsutil::excerpt(&other.to_string())
            ))
            .hint("a comparison is true or false: `where: \"{{ subject == 'anatomy' }}\"`")),
        }
    }

    /// Adds the columns that the task computes.
    fn with_columns(&self, mut columns: RowColumns) -> Result<RowColumns> {
        for (name, template) in self.columns {
            let value = template.value(&columns)?;
            columns.insert(name.clone(), value);
        }
        Ok(columns)
    }

    /// Returns the rows that a suite gives as examples. Columns that an example has are not computed.
    pub fn given_examples(&self, examples: &[RowColumns]) -> Result<Vec<TaskRow>> {
        let made = |(i, example): (usize, &RowColumns)| {
            let mut columns = example.clone();
            for (name, template) in self.columns.iter().filter(|(name, _)| !example.contains_key(name)) {
                let value = at(Path::new(GIVEN), i + 1, template.value(&columns))?;
                columns.insert(name.clone(), value);
            }
            Ok(TaskRow { line: i + 1, columns })
        };
        examples.iter().enumerate().map(made).collect()
    }
}

/// Reads a file that is one JSON value: a list of rows, or one row. `None` if it is several, one on each line.
fn document(file: &Path) -> Result<Option<Vec<TaskRow>>> {
    let text = fsutil::read_to_string(file)?;
    let items = match json::parse(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Array(items)) => items,
        Ok(one @ Value::Object(_)) => vec![one],
        _ => return Ok(None),
    };
    let row = |(i, item)| match item {
        Value::Object(columns) => Ok(TaskRow { line: i + 1, columns }),
        other => Err(Error::user(format!(
            "{}: item {} is no row: expected columns and values, found {}",
            file.display(),
            i + 1,
            fsutil::excerpt(&other.to_string())
        ))),
    };
    items.into_iter().enumerate().map(row).collect::<Result<_>>().map(Some)
}

/// Adds to `found` the rows in the lists that `path` names, the outermost first. A row has its own columns, those of the values around
/// it that it does not have itself, and each of these values under its name without the list inside.
fn unfold(outer: RowColumns, mut row: RowColumns, path: &[String], found: &mut Vec<RowColumns>) -> Result<()> {
    let Some((name, rest)) = path.split_first() else {
        let mut columns = outer;
        columns.extend(row);
        found.push(columns);
        return Ok(());
    };
    let items: Vec<(Option<String>, Value)> = match name.as_str() {
        "*" => std::mem::take(&mut row).into_iter().map(|(key, value)| (Some(key), value)).collect(),
        name => match row.shift_remove(name) {
            Some(Value::Array(items)) => items.into_iter().map(|item| (None, item)).collect(),
            Some(one @ Value::Object(_)) => vec![(None, one)],
            Some(other) => {
                let what = fsutil::excerpt(&other.to_string());
                return Err(Error::user(format!("`rows`: `{name}` is no list of rows, found {what}")));
            }
            None => {
                let names = row.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                return Err(
                    Error::user(format!("`rows`: there is no list `{name}`")).hint(format!("there are {names}"))
                );
            }
        },
    };
    let mut outer = outer;
    outer.extend(row);
    for (key, item) in items {
        let Value::Object(columns) = item else {
            let what = fsutil::excerpt(&item.to_string());
            return Err(Error::user(format!("`rows`: an item of `{name}` has no columns, found {what}")));
        };
        let mut outer = outer.clone();
        if let Some(key) = key {
            outer.insert("key".into(), key.into());
        }
        if let Some(next) = rest.first()
            && name != "*"
        {
            let mut itself = columns.clone();
            itself.shift_remove(next);
            outer.insert(name.clone(), itself.into());
        }
        unfold(outer, columns, rest, found)?;
    }
    Ok(())
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
