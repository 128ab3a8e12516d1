//! Defines prompts, candidate answers, and the pairs of answers that annotators compare.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A JSON object: the columns of a row, or ratings by the name of their criterion.
pub type JsonMap = Map<String, Value>;

/// A prompt in the store: the turns up to the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPrompt {
    /// Id in the store.
    pub id: i64,
    /// The row's own id, or a hash of the messages.
    pub key: String,
    /// A list of `{role, content}`.
    pub messages: Value,
    /// The other columns of the prompt's row.
    pub columns: JsonMap,
}

/// A prompt to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPrompt {
    /// The row's own id, or a hash of the messages.
    pub key: String,
    /// A list of `{role, content}`.
    pub messages: Value,
    /// The other columns of the prompt's row.
    pub columns: JsonMap,
}

impl NewPrompt {
    /// Creates a prompt without an id of its own. Its key is a hash of the messages: equal messages get equal keys.
    pub fn keyed_by_content(messages: Value, columns: JsonMap) -> Self {
        let digest = Sha256::digest(messages.to_string().as_bytes());
        Self { key: crate::fsutil::hex(&digest[..8]), messages, columns }
    }
}

/// An answer to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Id in the store.
    pub id: i64,
    /// Id of the prompt.
    pub prompt: i64,
    /// Who wrote it, as text: model, adapter, temperature.
    pub source: String,
    /// The answer.
    pub text: String,
    /// Number of tokens, if known.
    pub tokens: Option<i64>,
}

/// An answer to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCandidate {
    /// Id of the prompt.
    pub prompt: i64,
    /// Who wrote it, as text: model, adapter, temperature.
    pub source: String,
    /// The answer.
    pub text: String,
    /// Number of tokens, if known.
    pub tokens: Option<i64>,
}

/// Two answers to one prompt that annotators compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatePair {
    /// Id in the store.
    pub id: i64,
    /// Id of the prompt.
    pub prompt: i64,
    /// Id of the first candidate.
    pub a: i64,
    /// Id of the second candidate.
    pub b: i64,
    /// How many people are to judge it; for a repeat, how many of those who judged the original.
    pub overlap: i64,
    /// The original pair, if this pair is a hidden repeat: shown to the same person again without a notice.
    pub repeat_of: Option<i64>,
    /// Why the pair was selected: random, disagreement, ….
    pub reason: String,
}

/// A pair to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPair {
    /// Id of the prompt.
    pub prompt: i64,
    /// Id of the first candidate.
    pub a: i64,
    /// Id of the second candidate.
    pub b: i64,
    /// How many people are to judge it.
    pub overlap: i64,
    /// The original pair, if this pair is a hidden repeat.
    pub repeat_of: Option<i64>,
    /// Why the pair was selected.
    pub reason: String,
}

/// Counts of rows that an insertion added or found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InsertCounts {
    /// Rows that were added.
    pub new: usize,
    /// Already in the store.
    pub known: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_same_question_has_the_same_key() {
        let key =
            |text: &str| NewPrompt::keyed_by_content(json!([{ "role": "user", "content": text }]), JsonMap::new()).key;
        assert_eq!(key("Why?"), key("Why?"));
        assert_ne!(key("Why?"), key("How?"));
    }
}
