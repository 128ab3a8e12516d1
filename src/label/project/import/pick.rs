//! Interprets another tool's label as the choice of an answer.

use super::row::ImportedVerdict;
use crate::label::record::vote::VoteChoice;

/// The answer that a label of another tool means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerPick {
    One(usize),
    Tie,
    BothBad,
    /// The label is empty.
    Nothing,
}

/// Parses a label about answers with these names; `None` if it does not refer to them.
pub(super) fn parse_pick(label: &str, names: &[String]) -> Option<AnswerPick> {
    let label = label.trim().to_lowercase();
    if let Some(i) = names.iter().position(|n| n.to_lowercase() == label) {
        return Some(AnswerPick::One(i));
    }
    let says = |words: &[&str]| words.iter().any(|w| label.contains(w));
    match label.as_str() {
        "" => return Some(AnswerPick::Nothing),
        "left" | "a" => return Some(AnswerPick::One(0)),
        "right" | "b" => return Some(AnswerPick::One(1)),
        _ if says(&["both bad", "both_bad", "neither", "none"]) => return Some(AnswerPick::BothBad),
        _ if says(&["tie", "equal", "same", "both"]) => return Some(AnswerPick::Tie),
        _ => {}
    }
    let digits: String = label.chars().filter(char::is_ascii_digit).collect();
    // A number is that of a name, or counts from one if no name has a number.
    let named = names.iter().position(|n| !digits.is_empty() && suffix(n) == digits);
    let counted = digits.parse::<usize>().ok().and_then(|n| n.checked_sub(1)).filter(|n| *n < names.len());
    let bare = names.iter().all(|n| suffix(n).is_empty());
    named.or(counted.filter(|_| bare)).map(AnswerPick::One)
}

/// Returns the digits at the end of a name.
fn suffix(name: &str) -> String {
    let start = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[start..].to_string()
}

/// Converts the choice among several answers into verdicts on pairs of them.
pub(super) fn pairwise_verdicts(pick: AnswerPick, answers: usize, annotator: &str) -> Vec<ImportedVerdict> {
    let twos = (0..answers).flat_map(|a| (a + 1..answers).map(move |b| (a, b)));
    let said = |(a, b)| {
        let choice = match pick {
            AnswerPick::One(i) if i == a => VoteChoice::A,
            AnswerPick::One(i) if i == b => VoteChoice::B,
            AnswerPick::Tie => VoteChoice::Tie,
            AnswerPick::BothBad => VoteChoice::BothBad,
            // Neither of the two was chosen: nothing is known about their order.
            AnswerPick::One(_) | AnswerPick::Nothing => return None,
        };
        Some(ImportedVerdict { annotator: annotator.to_string(), a, b, choice })
    };
    twos.filter_map(said).collect()
}
