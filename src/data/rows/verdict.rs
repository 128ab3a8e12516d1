//! The column that labels an answer as good or bad.

use crate::data::source::RowColumns;
use serde_json::Value;

/// Returns the name of the column with the label of an answer. If there are two, the one with a valid label.
pub(super) fn verdict_column(columns: &RowColumns) -> Option<&'static str> {
    let names = ["label", "kto_tag"];
    let says = |key: &&str| columns.get(*key).is_some_and(|v| parse_verdict(v).is_some());
    names.into_iter().find(says).or_else(|| names.into_iter().find(|key| columns.contains_key(*key)))
}

/// Labels for a good and for a bad answer, in pairs.
const VERDICTS: [(&str, &str); 14] = [
    ("true", "false"),
    ("good", "bad"),
    ("desirable", "undesirable"),
    ("yes", "no"),
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("accept", "reject"),
    ("positive", "negative"),
    ("correct", "incorrect"),
    ("like", "dislike"),
    ("thumbs up", "thumbs down"),
    ("up", "down"),
    ("👍", "👎"),
    ("upvote", "downvote"),
];

/// Lists the valid labels, for error messages.
pub(super) fn verdict_words() -> String {
    let words = VERDICTS.iter().map(|(good, bad)| format!("{good}/{bad}")).collect::<Vec<_>>().join(", ");
    format!("1/0 and {words}")
}

/// Reads a label: true for good, false for bad. It may be a boolean, 1 or 0, or one of the words in [`VERDICTS`].
pub(super) fn parse_verdict(value: &Value) -> Option<bool> {
    let number = |x: f64| match x {
        0.0 => Some(false),
        1.0 => Some(true),
        _ => None,
    };
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => n.as_f64().and_then(number),
        Value::String(text) => {
            let said = text.trim().to_lowercase().replace(['_', '-'], " ");
            let word = |(good, bad): &(&str, &str)| match said.as_str() {
                said if said == *good => Some(true),
                said if said == *bad => Some(false),
                _ => None,
            };
            VERDICTS.iter().find_map(word).or_else(|| text.trim().parse().ok().and_then(number))
        }
        _ => None,
    }
}
