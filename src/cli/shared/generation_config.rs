//! Reads the model's generation_config.json, and remembers which of its keys were used.

use ft::error::{Error, Result};
use ft::model_files::ModelFiles;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Keys of generation_config.json that ft does not support, each with the values that switch it off.
const UNSUPPORTED_KEYS: &[(&str, &[f64])] = &[
    ("assistant_confidence_threshold", &[]),
    ("diversity_penalty", &[0.0]),
    ("dola_layers", &[]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("begin_suppress_tokens", &[]),
    ("constraints", &[]),
    ("force_words_ids", &[]),
    ("guidance_scale", &[1.0]),
    ("max_time", &[]),
    ("num_beam_groups", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("prompt_lookup_num_tokens", &[]),
    ("sequence_bias", &[]),
    ("token_healing", &[]),
    ("top_h", &[]),
    ("typical_p", &[1.0]),
    ("watermarking_config", &[]),
];

/// The model's generation_config.json, and the keys that were used so far.
pub struct GenerationConfig {
    pub file: PathBuf,
    values: Map<String, Value>,
    /// Keys and values that were used.
    pub taken: Vec<String>,
}

impl GenerationConfig {
    /// Reads the file; without one, no key is set.
    pub fn read(model: &Path) -> Result<Self> {
        const FILE: &str = "generation_config.json";
        let files = ModelFiles::open(model)?;
        Ok(Self { file: files.place(FILE), values: files.json_or_default(FILE)?, taken: Vec::new() })
    }

    /// Returns the value of `key`, or `None` if it is missing or null. Fails if `read` does not accept it; `what` names
    /// the expected kind of value in the error.
    pub fn get<T>(&mut self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match read(v) {
                Some(x) => {
                    self.taken.push(format!("{key} {v}"));
                    Ok(Some(x))
                }
                None => Err(Error::user(format!("{}: `{key}` is {v}, expected {what}", self.file.display()))),
            },
        }
    }

    /// Returns the number at `key`.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    /// Returns the whole number at `key`.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().map(|n| n as usize))
    }

    /// Returns the token id at `key`.
    pub fn token(&mut self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a token id", |v| v.as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    /// Returns the list at `key`, empty if there is none.
    pub fn list<T: serde::de::DeserializeOwned>(&mut self, key: &str, what: &str) -> Result<Vec<T>> {
        Ok(self.get(key, what, |v| serde_json::from_value(v.clone()).ok())?.unwrap_or_default())
    }

    /// Returns the unsupported keys that the file sets to values that would change answers.
    pub fn unsupported(&self) -> Vec<&'static str> {
        let says = |(key, nothing): &&(&'static str, &[f64])| match self.values.get(*key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(v) => !v.as_f64().is_some_and(|x| nothing.contains(&x)),
        };
        UNSUPPORTED_KEYS.iter().filter(says).map(|(key, _)| *key).collect()
    }
}
