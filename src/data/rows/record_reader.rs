//! Reads the columns of one row by name and type. Every error names the row's place and the key.

use super::json_text::type_name;
use crate::data::source::{RowColumns, RowPlace};
use crate::error::{Error, Result};
use crate::json;
use serde_json::Value;
use std::fmt;

/// Reads the columns of one row; its errors name the row's place.
pub(super) struct RecordReader<'a> {
    pub(super) place: RowPlace<'a>,
}

impl RecordReader<'_> {
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        Error::user(format!("{}: {message}", self.place))
    }

    pub(super) fn missing(&self, key: &str, columns: &RowColumns) -> Error {
        let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        self.error(format!("key `{key}` is missing; found {}", if found.is_empty() { "none".into() } else { found }))
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("key `{key}` is {}, expected {expected}", type_name(found)))
    }

    /// Returns the error for a value that is not a list. If it is text that looks like a list, the error says what is
    /// wrong with it.
    pub(super) fn no_list(&self, key: &str, expected: &str, found: &Value) -> Error {
        let text = found.as_str().filter(|text| text.trim_start().starts_with('['));
        let Some(e) = text.and_then(|text| json::parse(text).err()) else { return self.wrong(key, expected, found) };
        let python = text.is_some_and(|text| text.contains("{'") || text.contains("['"));
        let what = if python { "a list as printed by Python" } else { "a list as text" };
        let what = e
            .to_string()
            .split(" at line ")
            .next()
            .map_or(what.to_string(), |e| format!("{what}, which is not valid JSON: {e}"));
        self.error(format!("key `{key}` is {what}"))
            .hint("write such columns with json.dumps, or the rows as JSON Lines or Parquet (`to_json`, `to_parquet`)")
    }

    /// Reads text that is required but may be empty.
    pub(super) fn text(&self, columns: &RowColumns, key: &str) -> Result<String> {
        match columns.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(key, "text", other)),
            None => Err(self.missing(key, columns)),
        }
    }

    /// Reads text that is required and must not be empty.
    pub(super) fn filled_text(&self, columns: &RowColumns, key: &str) -> Result<String> {
        let text = self.text(columns, key)?;
        if text.is_empty() {
            return Err(self
                .error(format!("key `{key}` is empty, so there is nothing to train on"))
                .hint("remove the row, or fill it"));
        }
        Ok(text)
    }

    /// Reads optional text; missing, null and empty text are `None`.
    pub(super) fn optional_text(&self, columns: &RowColumns, key: &str) -> Result<Option<String>> {
        match columns.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|t| !t.is_empty())),
            Some(other) => Err(self.wrong(key, "text", other)),
        }
    }
}
