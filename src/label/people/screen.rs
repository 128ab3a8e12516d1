//! Defines what a screen shows to an annotator and what the annotator sends back, in terms of left and right.
//!
//! A screen does not know the pair's own `a` and `b`, who wrote an answer, or whether a pair is a hidden repeat.

use crate::label::record::answer::{JsonMap, StoredPrompt};
use crate::label::record::vote::VoteChoice;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A vote as a screen sends it: on sides, not on the pair's own `a` and `b`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScreenVote {
    /// Id of the task (the pair).
    pub task: i64,
    /// The choice.
    pub choice: SideChoice,
    /// How much better the chosen answer is, from 1 to 3.
    #[serde(default)]
    pub strength: Option<i64>,
    /// Ratings by criterion: `{"criterion": {"left": 3, "right": 4}}`.
    #[serde(default)]
    pub ratings: JsonMap,
    /// A note for whoever reads the votes.
    #[serde(default)]
    pub note: Option<String>,
    /// Whether an admin should look at it.
    #[serde(default)]
    pub flagged: bool,
    /// A better answer, written by the annotator.
    #[serde(default)]
    pub edited: Option<String>,
    /// Seconds of work on the task, as measured by the page.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// A request id chosen by the sender; sending the same vote again under this id changes nothing.
    pub request: String,
}

/// The choice of a vote in terms of sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideChoice {
    /// The left answer is better.
    Left,
    /// The right answer is better.
    Right,
    /// Both are equally good.
    Tie,
    /// Both are bad.
    BothBad,
    /// No judgement: somebody else gets the task.
    Skip,
}

impl SideChoice {
    /// Converts to the pair's own `a` and `b`; `swapped` means that `b` is on the left.
    pub fn to_choice(self, swapped: bool) -> VoteChoice {
        match (self, swapped) {
            (Self::Left, false) | (Self::Right, true) => VoteChoice::A,
            (Self::Right, false) | (Self::Left, true) => VoteChoice::B,
            (Self::Tie, _) => VoteChoice::Tie,
            (Self::BothBad, _) => VoteChoice::BothBad,
            (Self::Skip, _) => VoteChoice::Skip,
        }
    }

    /// Converts from the pair's own `a` and `b`; `swapped` means that `b` is on the left.
    pub fn from_choice(choice: VoteChoice, swapped: bool) -> Self {
        match (choice, swapped) {
            (VoteChoice::A, false) | (VoteChoice::B, true) => Self::Left,
            (VoteChoice::B, false) | (VoteChoice::A, true) => Self::Right,
            (VoteChoice::Tie, _) => Self::Tie,
            (VoteChoice::BothBad, _) => Self::BothBad,
            (VoteChoice::Skip, _) => Self::Skip,
        }
    }
}

/// A task as a screen shows it. Contains no source, no answer id and no hint that the pair is a repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct ScreenTask {
    /// Id of the pair.
    pub id: i64,
    /// The prompt.
    pub prompt: StoredPrompt,
    /// Text of the left answer.
    pub left: String,
    /// Text of the right answer.
    pub right: String,
    /// The annotator's own vote on this task, if it was just undone.
    pub before: Option<UndoneVote>,
}

/// A vote that was undone, shown again so that the annotator can change it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UndoneVote {
    /// The choice.
    pub choice: SideChoice,
    /// How much better the chosen answer is, from 1 to 3.
    pub strength: Option<i64>,
    /// Ratings by criterion: `{"criterion": {"left": 3, "right": 4}}`.
    pub ratings: JsonMap,
    /// The note.
    pub note: Option<String>,
    /// Whether it was flagged.
    pub flagged: bool,
    /// The better answer that the annotator wrote.
    pub edited: Option<String>,
}

/// Returns the ratings with the keys `from` of each criterion renamed to `to`.
pub fn rename_sides(ratings: &JsonMap, from: [&str; 2], to: [&str; 2]) -> JsonMap {
    let rename = |(name, sides): (&String, &Value)| {
        let both = from.iter().zip(to).filter_map(|(from, to)| Some((to.to_string(), sides.get(from)?.clone())));
        (name.clone(), Value::Object(both.collect()))
    };
    ratings.iter().map(rename).collect()
}

/// Returns the pair's own names (`a` and `b`) of the left and the right answer.
pub fn side_names(swapped: bool) -> [&'static str; 2] {
    if swapped { ["b", "a"] } else { ["a", "b"] }
}
