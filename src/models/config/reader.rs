//! Reads typed values of config.json.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads typed values of config.json by their usual names.
pub(super) struct ConfigReader<'a> {
    /// The file's keys.
    pub raw: &'a Map<String, Value>,
    /// (usual name, the family's name) of keys that are named differently.
    pub keys: &'a [(&'a str, &'a str)],
    /// The file, for messages.
    pub file: &'a Path,
}

impl<'a> ConfigReader<'a> {
    fn key<'k>(&self, usual: &'k str) -> &'k str
    where
        'a: 'k,
    {
        self.keys.iter().find(|(name, _)| *name == usual).map_or(usual, |(_, own)| own)
    }

    /// Returns a value, or `None` if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(self.key(key)).filter(|v| !v.is_null())
    }

    /// Returns true if a value is null.
    pub fn is_null(&self, key: &str) -> bool {
        self.raw.get(self.key(key)).is_some_and(Value::is_null)
    }

    /// Returns the error for a key that is missing or is not `what`.
    pub fn wrong_value(&self, key: &str, what: &str) -> Error {
        let key = self.key(key);
        let found = self.raw.get(key).map_or("it is missing".to_string(), |v| format!("found {v}"));
        Error::user(format!("{}: `{key}` must be {what}; {found}", self.file.display()))
            .hint("is this the config.json of a decoder-only language model?")
    }
    /// Returns a size: an integer from 1 to 2^24.
    pub fn int(&self, key: &str) -> Result<i64> {
        self.int_up_to(key, 1 << 24) // no real dimension is larger; a damaged file must not cause a huge allocation
    }
    /// Returns an integer from 1 to `most`.
    pub fn int_up_to(&self, key: &str, most: i64) -> Result<i64> {
        let found = self.get(key).and_then(Value::as_i64).filter(|n| (1..=most).contains(n));
        found.ok_or_else(|| self.wrong_value(key, &format!("a positive integer, at most {most}")))
    }
    /// Returns a size, or `default` if the key is missing.
    pub fn int_or(&self, key: &str, default: i64) -> Result<i64> {
        if self.get(key).is_none() { Ok(default) } else { self.int(key) }
    }
    /// Returns a number.
    pub fn float(&self, key: &str) -> Result<f64> {
        self.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong_value(key, "a number"))
    }
    /// Returns a number, or `default` if the key is missing.
    pub fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_none() { Ok(default) } else { self.float(key) }
    }
    /// Returns a string.
    pub fn text(&self, key: &str) -> Result<String> {
        self.get(key).and_then(Value::as_str).map(String::from).ok_or_else(|| self.wrong_value(key, "a string"))
    }
    /// Returns a truth value; false if the key is missing or is something else.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}
