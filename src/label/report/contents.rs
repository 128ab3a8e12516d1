//! Defines all numbers of the report. They are also written as JSON.

use crate::label::results::bias::{JudgeHabits, LengthBaseline};
use crate::label::results::ranking::SourceRanking;
use crate::label::results::verdict::Aggregation;
use crate::label::statistics::bootstrap::Estimate;
use crate::label::statistics::summary::Proportion;
use serde::Serialize;
use std::collections::BTreeMap;

/// All numbers of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelReport {
    pub title: String,
    pub counts: ProjectCounts,
    /// How votes were aggregated into verdicts, and the names of the annotators whose votes were used.
    pub aggregation: Aggregation,
    pub judged_by: Vec<String>,
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Agreement between the annotators whose votes the verdicts are based on.
    pub agreement: Agreement,
    pub judges: Vec<JudgeReport>,
    pub ranking: SourceRanking,
    pub length: Option<LengthBaseline>,
    pub findings: Vec<LabelFinding>,
    pub ft_version: &'static str,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProjectCounts {
    pub prompts: usize,
    pub candidates: usize,
    pub pairs: usize,
    /// Hidden repeats among the pairs.
    pub repeats: usize,
    /// Votes that count, including skips; and the skips among them.
    pub votes: usize,
    pub skips: usize,
    pub people: usize,
    pub machines: usize,
    /// Pairs that two or more annotators judged.
    pub shared: usize,
}

/// Agreement between annotators. Choices are compared as nominal values, and as preferences on a scale from `b` to `a`
/// with ties and "both bad" in the middle; the scale uses strengths if every choice has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Krippendorff's alpha of the choices (nominal) and of the preferences (ordinal, interval).
    pub alpha_nominal: Option<Estimate>,
    pub alpha_ordinal: Option<Estimate>,
    pub alpha_interval: Option<Estimate>,
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
    pub kappa: Estimate,
    /// Number of pairs that were used, each with `votes` votes.
    pub pairs: usize,
    pub votes: usize,
}

/// Cohen's kappa of two annotators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CohenKappa {
    pub a: String,
    pub b: String,
    pub kappa: Estimate,
    pub pairs: usize,
}

/// One annotator: habits, reliability, and agreement with the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgeReport {
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
    pub pairs: usize,
    pub same: Proportion,
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
