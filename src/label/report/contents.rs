//! Defines all numbers of the report. They are also written as JSON.

use crate::label::results::bias::{JudgeHabits, LengthBaseline};
use crate::label::results::ranking::SourceRanking;
use crate::label::results::verdict::Aggregation;
use crate::stats::bootstrap::Estimate;
use crate::stats::proportion::Proportion;
use serde::Serialize;
use std::collections::BTreeMap;

/// All numbers of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelReport {
    /// Title of the project.
    pub title: String,
    /// Counts of records.
    pub counts: ProjectCounts,
    /// How votes were aggregated into verdicts.
    pub aggregation: Aggregation,
    /// Names of the annotators whose votes were used.
    pub judged_by: Vec<String>,
    /// Number of pairs by the name of their verdict.
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Agreement between the annotators whose votes the verdicts are based on.
    pub agreement: Agreement,
    /// Each annotator with a vote, people first.
    pub judges: Vec<JudgeReport>,
    /// The sources of answers, the strongest first.
    pub ranking: SourceRanking,
    /// How well length alone predicts the verdicts; `None` if no verdict is `a` or `b`.
    pub length: Option<LengthBaseline>,
    /// Problems of the labels.
    pub findings: Vec<LabelFinding>,
    /// Version of ft that computed the report.
    pub ft_version: &'static str,
}

/// Counts of the project's records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProjectCounts {
    /// Prompts.
    pub prompts: usize,
    /// Answers.
    pub candidates: usize,
    /// Pairs, without hidden repeats.
    pub pairs: usize,
    /// Hidden repeats among the pairs.
    pub repeats: usize,
    /// Votes that count, including skips.
    pub votes: usize,
    /// Skips among the votes.
    pub skips: usize,
    /// People with a vote.
    pub people: usize,
    /// Machines with a vote.
    pub machines: usize,
    /// Pairs that two or more annotators judged.
    pub shared: usize,
}

/// Agreement between annotators. Choices are compared as nominal values, and as preferences on a scale from `b` to `a`
/// with ties and "both bad" in the middle; the scale uses strengths if every choice has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Krippendorff's alpha of the choices (nominal).
    pub alpha_nominal: Option<Estimate>,
    /// Krippendorff's alpha of the preferences (ordinal).
    pub alpha_ordinal: Option<Estimate>,
    /// Krippendorff's alpha of the preferences (interval).
    pub alpha_interval: Option<Estimate>,
    /// Fleiss' kappa of the choices.
    pub fleiss: Option<FleissKappa>,
    /// Share of equal votes among all couples of votes on the same pair.
    pub raw: Option<Estimate>,
    /// Cohen's kappa of every two annotators who judged the same pairs.
    pub cohen: Vec<CohenKappa>,
    /// Rate of equal judgements on hidden repeats, over all annotators.
    pub self_consistency: Option<Proportion>,
}

/// Fleiss' kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FleissKappa {
    /// The kappa.
    pub kappa: Estimate,
    /// Number of pairs that were used, each with `votes` votes.
    pub pairs: usize,
    /// Number of votes on each of these pairs.
    pub votes: usize,
}

/// Cohen's kappa of two annotators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CohenKappa {
    /// Name of one annotator.
    pub a: String,
    /// Name of the other.
    pub b: String,
    /// The kappa.
    pub kappa: Estimate,
    /// Number of pairs that both judged.
    pub pairs: usize,
}

/// One annotator: habits, reliability, and agreement with the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeReport {
    /// Counts and biases.
    #[serde(flatten)]
    pub habits: JudgeHabits,
    /// Probability of a true vote according to Dawid and Skene's model; `None` if only one annotator voted.
    pub reliability: Option<f64>,
    /// Agreement with the verdicts, for an annotator whose votes are not used for them.
    pub with_verdicts: Option<VerdictAgreement>,
}

/// Agreement of an annotator with the verdicts: rate of equal choices, and Cohen's kappa.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct VerdictAgreement {
    /// Number of pairs with a verdict that the annotator judged.
    pub pairs: usize,
    /// Rate of equal choices.
    pub same: Proportion,
    /// Cohen's kappa.
    pub kappa: Option<Estimate>,
}

/// A problem of the labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelFinding {
    /// Whether the labels should not be used for training before this is solved.
    pub grave: bool,
    /// The problem, in a sentence.
    pub what: String,
    /// The next step.
    pub next: String,
}
