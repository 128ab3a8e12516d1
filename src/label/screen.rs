//! What stands on a screen and what a person says there: of left and right, never of the pair's own `a` and `b`.
//!
//! Nothing here says who wrote an answer, or that a pair was shown before.

use super::record::{Choice, Columns, Prompt};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A judgement as a screen gives it: of sides, not of the pair's own `a` and `b`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    pub task: i64,
    pub choice: SideChoice,
    #[serde(default)]
    pub strength: Option<i64>,
    /// `{"criterion": {"left": 3, "right": 4}}`
    #[serde(default)]
    pub ratings: Columns,
    #[serde(default)]
    pub note: Option<String>,
    #[serde(default)]
    pub flagged: bool,
    #[serde(default)]
    pub edited: Option<String>,
    /// Time at work on it, as the page measured it.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// The sender's name for this vote; sending it again changes nothing.
    pub request: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideChoice {
    Left,
    Right,
    Tie,
    BothBad,
    Skip,
}

impl SideChoice {
    /// Of the pair's own `a` and `b`.
    pub fn choice(self, swapped: bool) -> Choice {
        match (self, swapped) {
            (Self::Left, false) | (Self::Right, true) => Choice::A,
            (Self::Right, false) | (Self::Left, true) => Choice::B,
            (Self::Tie, _) => Choice::Tie,
            (Self::BothBad, _) => Choice::BothBad,
            (Self::Skip, _) => Choice::Skip,
        }
    }

    pub fn of(choice: Choice, swapped: bool) -> Self {
        match (choice, swapped) {
            (Choice::A, false) | (Choice::B, true) => Self::Left,
            (Choice::B, false) | (Choice::A, true) => Self::Right,
            (Choice::Tie, _) => Self::Tie,
            (Choice::BothBad, _) => Self::BothBad,
            (Choice::Skip, _) => Self::Skip,
        }
    }
}

/// What stands on the screen: no source, no id of an answer, no word of a repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The pair.
    pub id: i64,
    pub prompt: Prompt,
    pub left: String,
    pub right: String,
    /// What was said of it before it was taken back.
    pub before: Option<Before>,
}

/// A vote that was taken back, to be given again with changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Before {
    pub choice: SideChoice,
    pub strength: Option<i64>,
    pub ratings: Columns,
    pub note: Option<String>,
    pub flagged: bool,
    pub edited: Option<String>,
}

/// Ratings with the sides `from` under the names `to`.
pub fn renamed(ratings: &Columns, from: [&str; 2], to: [&str; 2]) -> Columns {
    let rename = |(name, sides): (&String, &Value)| {
        let both = from.iter().zip(to).filter_map(|(from, to)| Some((to.to_string(), sides.get(from)?.clone())));
        (name.clone(), Value::Object(both.collect()))
    };
    ratings.iter().map(rename).collect()
}

/// The pair's own names of what stands left and right.
pub fn sides(swapped: bool) -> [&'static str; 2] {
    if swapped { ["b", "a"] } else { ["a", "b"] }
}
