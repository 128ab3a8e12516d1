//! Defines the options of an export.

/// The layout of exported rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelExportFormat {
    /// `prompt`, `chosen`, `rejected`, `margin`: one row per pair.
    Preference,
    /// `prompt`, `completions` from best to worst, their `scores` and `models`: one row per prompt.
    Ranked,
    /// `prompt`, `completion`, `label`: one row per answer.
    Unpaired,
    /// Records as Argilla writes them: one row per pair with all votes, and the verdict as a suggestion.
    Argilla,
}

/// Where a pair's margin comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarginSource {
    /// No column `margin`.
    None,
    /// The mean strength of the votes, where votes for the other answer are negative; rows without strengths have no
    /// margin.
    Strength,
    /// The difference between the probabilities of the chosen and the rejected answer (shares of votes, or the
    /// posterior).
    Agreement,
}

/// Options of the export.
#[derive(Debug, Clone)]
pub struct LabelExportOptions {
    /// The layout of the rows.
    pub format: LabelExportFormat,
    /// Where the margins come from.
    pub margin: MarginSource,
    /// Verdicts with a lower probability than this are left out.
    pub confidence: f64,
    /// Keep ties. In the preference format a tie becomes two rows, each answer chosen once, with margin 0; in the
    /// unpaired format both answers are good.
    pub ties: bool,
    /// Keep "both bad". In the unpaired format both answers are bad; the preference format cannot express it.
    pub both_bad: bool,
    /// Add the answers that annotators wrote as better ones: chosen over the winner, or over both answers.
    pub edits: bool,
    /// Share of prompts in the validation split.
    pub valid: f64,
    /// Random seed of the split.
    pub seed: u64,
}
