//! Defines the records of a labelling project: prompts, candidate answers, pairs of answers, annotators and votes.
//!
//! A vote names the pair's own `a` or `b`, never a side of the screen; `swapped` records which of them was on the left.
//! Plain data: independent of tensors, databases and pages.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt;

/// A JSON object: the columns of a row, or ratings by the name of their criterion.
pub type JsonMap = Map<String, Value>;

/// Settings of a project: what annotators are asked, and how. Written when the project is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectSettings {
    /// Title shown above every task.
    pub title: String,
    /// Guidelines that say what makes an answer better, as Markdown.
    pub guidelines: String,
    /// Criteria by which each answer is rated, in addition to the choice.
    pub criteria: Vec<Criterion>,
    /// Whether annotators who choose an answer may say how much better it is (1 to 3).
    pub strength: bool,
    /// Whether annotators may write an answer that is better than both.
    pub edit: bool,
    /// How many people judge a pair, unless the selection of the pair says otherwise.
    pub overlap: i64,
    /// Seconds without a sign of activity after which a task is given to somebody else.
    pub lease: i64,
    /// Random seed of the project: for sides, repeats and the selection of pairs.
    pub seed: u64,
}

impl Default for ProjectSettings {
    fn default() -> Self {
        Self {
            title: "Which answer is better?".into(),
            guidelines: String::new(),
            criteria: Vec::new(),
            strength: false,
            edit: true,
            overlap: 1,
            lease: 300,
            seed: 7,
        }
    }
}

/// A criterion by which each answer is rated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    pub name: String,
    /// The best rating; the worst is 1.
    pub best: i64,
}

/// A prompt in the store: the turns up to the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPrompt {
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
    pub key: String,
    pub messages: Value,
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
    pub id: i64,
    pub prompt: i64,
    /// Who wrote it, as text: model, adapter, temperature.
    pub source: String,
    pub text: String,
    pub tokens: Option<i64>,
}

/// An answer to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCandidate {
    pub prompt: i64,
    pub source: String,
    pub text: String,
    pub tokens: Option<i64>,
}

/// Two answers to one prompt that annotators compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatePair {
    pub id: i64,
    pub prompt: i64,
    /// Ids of the two candidates.
    pub a: i64,
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
    pub prompt: i64,
    pub a: i64,
    pub b: i64,
    pub overlap: i64,
    pub repeat_of: Option<i64>,
    pub reason: String,
}

/// The kind of an annotator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotatorKind {
    Person,
    /// A reward model.
    Reward,
    /// A language model with a rubric.
    Judge,
    /// A program of the user.
    Command,
}

impl AnnotatorKind {
    pub const ALL: [AnnotatorKind; 4] =
        [AnnotatorKind::Person, AnnotatorKind::Reward, AnnotatorKind::Judge, AnnotatorKind::Command];

    pub fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Reward => "reward",
            Self::Judge => "judge",
            Self::Command => "command",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
}

impl fmt::Display for AnnotatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A person or a machine that judges pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotator {
    pub id: i64,
    pub name: String,
    pub kind: AnnotatorKind,
    /// SHA-256 of the person's token, hexadecimal; `None` if the annotator cannot sign in.
    pub token_hash: Option<String>,
    /// For a machine its model, rubric, order, …; `admin: true` for a person who may see everybody's votes.
    pub detail: Value,
}

impl Annotator {
    /// Returns true if this person may see everybody's votes.
    pub fn is_admin(&self) -> bool {
        self.detail.get("admin").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The choice of a vote on a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteChoice {
    A,
    B,
    Tie,
    BothBad,
    /// No judgement: the pair is given to somebody else.
    Skip,
}

impl VoteChoice {
    pub const ALL: [VoteChoice; 5] =
        [VoteChoice::A, VoteChoice::B, VoteChoice::Tie, VoteChoice::BothBad, VoteChoice::Skip];

    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Tie => "tie",
            Self::BothBad => "both_bad",
            Self::Skip => "skip",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }

    /// Returns the same judgement for the pair with `a` and `b` exchanged.
    pub fn flipped(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
            other => other,
        }
    }
}

impl fmt::Display for VoteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A vote in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    pub id: i64,
    pub pair: i64,
    pub annotator: i64,
    /// In terms of the pair's own `a` and `b`.
    pub choice: VoteChoice,
    /// How much better: 1 (slightly) to 3 (clearly).
    pub strength: Option<i64>,
    /// Whether `b` was shown on the left.
    pub swapped: bool,
    /// Seconds that the annotator worked on it.
    pub seconds: Option<f64>,
    pub note: Option<String>,
    /// Flagged by the annotator for an admin to look at.
    pub flagged: bool,
    /// Ratings by criterion: `{"a": rating, "b": rating}`.
    pub ratings: JsonMap,
    /// An answer that the annotator wrote and considers better than both.
    pub edited: Option<String>,
    /// For a machine its choice in each order and its scores; `adjudicated: true` for an admin's final decision.
    pub detail: Value,
    /// Time of the vote (RFC 3339, UTC).
    pub created: String,
    /// Undone by its annotator. An undone vote stays in the store but never counts.
    pub undone: bool,
}

impl Vote {
    /// Returns true if this is an admin's final decision on a pair that people judged differently. It replaces their
    /// votes and is left out of agreement statistics.
    pub fn adjudicates(&self) -> bool {
        self.detail.get("adjudicated").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A vote to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVote {
    pub pair: i64,
    pub annotator: i64,
    pub choice: VoteChoice,
    pub strength: Option<i64>,
    pub swapped: bool,
    pub seconds: Option<f64>,
    pub note: Option<String>,
    pub flagged: bool,
    pub ratings: JsonMap,
    pub edited: Option<String>,
    pub detail: Value,
    /// A request id chosen by the sender: a vote sent twice under one id is stored once.
    pub request: Option<String>,
}

impl NewVote {
    /// Creates a vote with a choice and nothing else.
    pub fn new(pair: i64, annotator: i64, choice: VoteChoice) -> Self {
        Self {
            pair,
            annotator,
            choice,
            strength: None,
            swapped: false,
            seconds: None,
            note: None,
            flagged: false,
            ratings: JsonMap::new(),
            edited: None,
            detail: Value::Object(Map::new()),
            request: None,
        }
    }
}

/// Counts of rows that an insertion added or found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InsertCounts {
    pub new: usize,
    /// Already in the store.
    pub known: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_what_serde_writes() {
        for choice in VoteChoice::ALL {
            assert_eq!(json!(choice), json!(choice.name()));
            assert_eq!(VoteChoice::named(choice.name()), Some(choice));
            assert_eq!(choice.flipped().flipped(), choice);
        }
        for kind in AnnotatorKind::ALL {
            assert_eq!(json!(kind), json!(kind.name()));
            assert_eq!(AnnotatorKind::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn the_same_question_has_the_same_key() {
        let key =
            |text: &str| NewPrompt::keyed_by_content(json!([{ "role": "user", "content": text }]), JsonMap::new()).key;
        assert_eq!(key("Why?"), key("Why?"));
        assert_ne!(key("Why?"), key("How?"));
    }
}
