//! Defines votes.
//!
//! A vote names the pair's own `a` or `b`, never a side of the screen; `swapped` records which of them was on the left.

use super::answer::JsonMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The choice of a vote on a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteChoice {
    /// `a` is better.
    A,
    /// `b` is better.
    B,
    /// Both are equally good.
    Tie,
    /// Both are bad.
    BothBad,
    /// No judgement: the pair is given to somebody else.
    Skip,
}

impl VoteChoice {
    /// All choices.
    pub const ALL: [VoteChoice; 5] =
        [VoteChoice::A, VoteChoice::B, VoteChoice::Tie, VoteChoice::BothBad, VoteChoice::Skip];

    /// Returns the name under which the choice is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Tie => "tie",
            Self::BothBad => "both_bad",
            Self::Skip => "skip",
        }
    }

    /// Returns the choice with this name; `None` if there is none.
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
    /// Id in the store.
    pub id: i64,
    /// Id of the pair that was shown.
    pub pair: i64,
    /// Id of the annotator.
    pub annotator: i64,
    /// In terms of the pair's own `a` and `b`.
    pub choice: VoteChoice,
    /// How much better: 1 (slightly) to 3 (clearly).
    pub strength: Option<i64>,
    /// Whether `b` was shown on the left.
    pub swapped: bool,
    /// Seconds that the annotator worked on it.
    pub seconds: Option<f64>,
    /// The annotator's note.
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
    /// Id of the pair that was shown.
    pub pair: i64,
    /// Id of the annotator.
    pub annotator: i64,
    /// In terms of the pair's own `a` and `b`.
    pub choice: VoteChoice,
    /// How much better: 1 (slightly) to 3 (clearly).
    pub strength: Option<i64>,
    /// Whether `b` was shown on the left.
    pub swapped: bool,
    /// Seconds that the annotator worked on it.
    pub seconds: Option<f64>,
    /// The annotator's note.
    pub note: Option<String>,
    /// Flagged by the annotator for an admin to look at.
    pub flagged: bool,
    /// Ratings by criterion: `{"a": rating, "b": rating}`.
    pub ratings: JsonMap,
    /// An answer that the annotator wrote and considers better than both.
    pub edited: Option<String>,
    /// As in [`Vote::detail`].
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::record::annotator::AnnotatorKind;
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
}
