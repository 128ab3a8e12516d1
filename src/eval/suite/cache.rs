//! Answers of models by content: a request that was answered is not computed again, in this evaluation or, with a file, after it
//! was interrupted.
//!
//! The key of an answer is a hash of the model, the adapter, the number format, the token ids and the settings. The file is the
//! one file of an evaluation that grows line by line instead of appearing whole: a kill loses what was not written, and a last
//! line without an end is removed when the file is opened again.

use crate::error::{Error, Result};
use crate::fsutil::{hex, io_error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Answers by their keys.
pub struct AnswerCache {
    known: HashMap<String, Value>,
    file: Option<(PathBuf, File)>,
}

/// One line of the file.
#[derive(Serialize, serde::Deserialize)]
struct CachedAnswer {
    key: String,
    answer: Value,
}

impl AnswerCache {
    /// Returns a cache that ends with the evaluation.
    pub fn in_memory() -> Self {
        Self { known: HashMap::new(), file: None }
    }

    /// Opens the file of an earlier evaluation, or begins one. Fails if a line in the middle cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| io_error("reading", path, e);
        let mut text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed(e)),
        };
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        text.truncate(whole);
        let mut known = HashMap::new();
        for (i, line) in text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let CachedAnswer { key, answer } = serde_json::from_slice(line).map_err(|e| {
                Error::user(format!("{}:{}: {e}", path.display(), i + 1))
                    .hint("remove the file: answers are then computed again")
            })?;
            known.insert(key, answer);
        }
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).map_err(failed)?;
        Ok(Self { known, file: Some((path.into(), file)) })
    }

    /// Returns the number of known answers.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Returns a known answer. One of another form counts as unknown.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.known.get(key).and_then(|answer| serde_json::from_value(answer.clone()).ok())
    }

    /// Adds answers, to the file in one write.
    pub fn add<T: Serialize>(&mut self, answers: Vec<(String, T)>) -> Result<()> {
        let mut lines = Vec::new();
        for (key, answer) in answers {
            let answer = serde_json::to_value(answer).map_err(|e| Error::bug(format!("an answer as JSON: {e}")))?;
            if self.file.is_some() {
                let line = CachedAnswer { key: key.clone(), answer: answer.clone() };
                serde_json::to_writer(&mut lines, &line).map_err(|e| Error::bug(format!("an answer as JSON: {e}")))?;
                lines.push(b'\n');
            }
            self.known.insert(key, answer);
        }
        match &mut self.file {
            Some((path, file)) => file.write_all(&lines).map_err(|e| io_error("writing", path, e)),
            None => Ok(()),
        }
    }
}

/// Makes the key of an answer. `model` identifies model, adapter and number format; `what` the settings.
pub fn key(model: &str, what: &str, ids: &[&[u32]]) -> String {
    let mut hash = Sha256::new();
    for text in [model, what] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    for part in ids {
        hash.update((part.len() as u64).to_le_bytes());
        part.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_and_half_a_line_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.jsonl");
        let mut cache = AnswerCache::open(&path).unwrap();
        let (a, b) = (key("m", "s", &[&[1, 2], &[3]]), key("m", "s", &[&[1], &[2, 3]]));
        assert_ne!(a, b);
        cache.add(vec![(a.clone(), (0.5, true))]).unwrap();
        cache.add(vec![(b.clone(), "text")]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut cache = AnswerCache::open(&path).unwrap();
        assert_eq!((cache.get::<(f64, bool)>(&a), cache.get::<String>(&b)), (Some((0.5, true)), None));
        assert_eq!(cache.get::<String>(&a), None);
        cache.add(vec![(b.clone(), "again")]).unwrap();
        assert_eq!(AnswerCache::open(&path).unwrap().get::<String>(&b).as_deref(), Some("again"));
        std::fs::write(&path, "{}\n").unwrap();
        let told = AnswerCache::open(&path).err().unwrap().to_string();
        assert!(told.contains("cache.jsonl:1:") && told.contains("remove the file"), "{told}");
    }
}
