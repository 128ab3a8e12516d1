//! What a labelling project holds, as plain data: prompts, answers to them, pairs of answers, who judges, and votes.
//!
//! A vote speaks of the pair's own `a` and `b`, never of the sides of a screen; which side stood where is beside it.
//! Knows no tensor, no database, no page.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt;

/// Columns of a row, or ratings by the name of their criterion.
pub type Columns = Map<String, Value>;

/// What people are asked, and how: written when the project is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Shown above every task.
    pub title: String,
    /// What makes an answer better, as Markdown.
    pub guidelines: String,
    /// Rated for each answer beside the choice.
    pub criteria: Vec<Criterion>,
    /// Whether a choice of one answer may say how much better it is (1 to 3).
    pub strength: bool,
    /// Whether people may write a better answer than both.
    pub edit: bool,
    /// How many people see a pair, where its selection does not say otherwise.
    pub overlap: i64,
    /// Seconds after which a task nobody works on any more goes to somebody else.
    pub lease: i64,
    /// All chance of the project: sides, repeats, selection.
    pub seed: u64,
}

impl Default for Settings {
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

/// Something each answer is rated for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    pub name: String,
    /// The best rating; the worst is 1.
    pub best: i64,
}

/// A question: the turns up to the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    pub id: i64,
    /// The row's own id, or a hash of what is asked.
    pub key: String,
    /// A list of `{role, content}`.
    pub messages: Value,
    /// The other columns of its row.
    pub columns: Columns,
}

/// A prompt to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPrompt {
    pub key: String,
    pub messages: Value,
    pub columns: Columns,
}

impl NewPrompt {
    /// A prompt without an id of its own: the same messages give the same key.
    pub fn keyed_by_content(messages: Value, columns: Columns) -> Self {
        let digest = Sha256::digest(messages.to_string().as_bytes());
        Self { key: crate::fsutil::hex(&digest[..8]), messages, columns }
    }
}

/// An answer to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub id: i64,
    pub prompt: i64,
    /// Who wrote it, in words: model, adapter, temperature.
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

/// Two answers to one prompt that somebody shall compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub id: i64,
    pub prompt: i64,
    /// Candidates.
    pub a: i64,
    pub b: i64,
    /// How many people shall judge it; of a repeat, how many of those who judged the first.
    pub overlap: i64,
    /// The pair that this one shows again, to the same person, without saying so.
    pub repeat_of: Option<i64>,
    /// Why it was chosen: random, disagreement, ….
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

/// What kind of judge somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Person,
    /// A reward model.
    Reward,
    /// A language model with a rubric.
    Judge,
    /// A program of the user's.
    Command,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Person, Kind::Reward, Kind::Judge, Kind::Command];

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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Somebody, or something, that judges pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Annotator {
    pub id: i64,
    pub name: String,
    pub kind: Kind,
    /// SHA-256 of the person's token, hexadecimal; none: cannot sign in.
    pub token_hash: Option<String>,
    /// Model, rubric, order … of a machine; `admin: true` of a person who may see everybody's work.
    pub detail: Value,
}

impl Annotator {
    /// Whether this person sees everybody's work.
    pub fn is_admin(&self) -> bool {
        self.detail.get("admin").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// What was said about a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    A,
    B,
    Tie,
    BothBad,
    /// No judgement: somebody else shall see the pair.
    Skip,
}

impl Choice {
    pub const ALL: [Choice; 5] = [Choice::A, Choice::B, Choice::Tie, Choice::BothBad, Choice::Skip];

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

    /// The same judgement of the pair the other way round.
    pub fn flipped(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
            other => other,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A judgement that was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    pub id: i64,
    pub pair: i64,
    pub annotator: i64,
    /// Of the pair's own `a` and `b`.
    pub choice: Choice,
    /// How much better: 1 (slightly) to 3 (clearly).
    pub strength: Option<i64>,
    /// Whether `b` stood on the left.
    pub swapped: bool,
    pub seconds: Option<f64>,
    pub note: Option<String>,
    /// Marked for somebody to look at.
    pub flagged: bool,
    /// By criterion: `{"a": rating, "b": rating}`.
    pub ratings: Columns,
    /// A better answer than both.
    pub edited: Option<String>,
    /// A judge's two orders and scores; `adjudicated: true` of an admin's final word.
    pub detail: Value,
    /// RFC 3339, UTC.
    pub created: String,
    /// Taken back by the one who gave it; kept for the record.
    pub undone: bool,
}

impl Vote {
    /// Whether this is the final word on a pair that people judged differently: it counts instead of their votes, and
    /// is no measure of their agreement.
    pub fn adjudicates(&self) -> bool {
        self.detail.get("adjudicated").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A judgement to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVote {
    pub pair: i64,
    pub annotator: i64,
    pub choice: Choice,
    pub strength: Option<i64>,
    pub swapped: bool,
    pub seconds: Option<f64>,
    pub note: Option<String>,
    pub flagged: bool,
    pub ratings: Columns,
    pub edited: Option<String>,
    pub detail: Value,
    /// The sender's name for this vote: the same vote sent twice is kept once.
    pub request: Option<String>,
}

impl NewVote {
    /// A bare choice.
    pub fn new(pair: i64, annotator: i64, choice: Choice) -> Self {
        Self {
            pair,
            annotator,
            choice,
            strength: None,
            swapped: false,
            seconds: None,
            note: None,
            flagged: false,
            ratings: Columns::new(),
            edited: None,
            detail: Value::Object(Map::new()),
            request: None,
        }
    }
}

/// What became of rows that were to be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    pub new: usize,
    /// Were there before.
    pub known: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_what_serde_writes() {
        for choice in Choice::ALL {
            assert_eq!(json!(choice), json!(choice.name()));
            assert_eq!(Choice::named(choice.name()), Some(choice));
            assert_eq!(choice.flipped().flipped(), choice);
        }
        for kind in Kind::ALL {
            assert_eq!(json!(kind), json!(kind.name()));
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn the_same_question_has_the_same_key() {
        let key =
            |text: &str| NewPrompt::keyed_by_content(json!([{ "role": "user", "content": text }]), Columns::new()).key;
        assert_eq!(key("Why?"), key("Why?"));
        assert_ne!(key("Why?"), key("How?"));
    }
}
