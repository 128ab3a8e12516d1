//! Defines the input of the training doctor and the problems that it reports.

use crate::recipe::plan::Plan;
use crate::runs::facts::RunFacts;
use crate::runs::history::{History, StepPoint};
use crate::stats::moments::mean_of_finite;
use serde::Serialize;

/// Known problems. Their names are stable: scripts may match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiagnosisId {
    /// A loss or gradient is not finite.
    NonFinite,
    /// The loss is zero.
    LossZero,
    /// The gradient is zero.
    NoGradient,
    /// The weights do not change.
    NoUpdate,
    /// The loss does not fall.
    FlatLoss,
    /// The loss rises or jumps.
    LearningRateTooHigh,
    /// Training loss falls, validation loss rises.
    Memorisation,
    /// The result is worse than the base.
    WorseThanStart,
    /// Few tokens are trained on.
    FewSupervisedTokens,
    /// The model does not differ from its reference.
    NoMovement,
    /// Fewer pairs are in the right order.
    AccuracyFalling,
    /// Chosen answers become unlikely.
    LikelihoodDisplacement,
}

impl DiagnosisId {
    /// Returns the name as messages and `--json` show it.
    pub fn name(self) -> &'static str {
        match self {
            DiagnosisId::NonFinite => "non-finite",
            DiagnosisId::LossZero => "loss-zero",
            DiagnosisId::NoGradient => "no-gradient",
            DiagnosisId::NoUpdate => "no-update",
            DiagnosisId::FlatLoss => "flat-loss",
            DiagnosisId::LearningRateTooHigh => "learning-rate-too-high",
            DiagnosisId::Memorisation => "memorisation",
            DiagnosisId::WorseThanStart => "worse-than-start",
            DiagnosisId::FewSupervisedTokens => "few-supervised-tokens",
            DiagnosisId::NoMovement => "no-movement",
            DiagnosisId::AccuracyFalling => "accuracy-falling",
            DiagnosisId::LikelihoodDisplacement => "likelihood-displacement",
        }
    }
}

/// A problem that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Which problem it is.
    pub id: DiagnosisId,
    /// The problem in a few words.
    pub title: String,
    /// Numbers that show the problem: (name, value).
    pub evidence: Vec<(String, String)>,
    /// Explanation in a sentence or two.
    pub cause: String,
    /// Commands to try, the most promising first.
    pub next: Vec<String>,
}

/// Input of the diagnosis: plan, facts and curves of one run.
#[derive(Clone, Copy)]
pub struct DiagnosisInput<'a> {
    /// The settings of the run.
    pub plan: &'a Plan,
    /// `None` for a run of an ft version that wrote no facts.
    pub facts: Option<&'a RunFacts>,
    /// Its curves.
    pub history: &'a History,
}

impl DiagnosisInput<'_> {
    /// Returns the peak learning rate.
    pub fn lr(&self) -> f64 {
        self.plan.recipe.optim.lr.unwrap_or(0.0)
    }

    /// Returns the steps whose update was applied.
    pub fn applied(&self) -> Vec<&StepPoint> {
        self.history.steps.iter().filter(|p| p.was_applied()).collect()
    }

    /// Returns an `ft train` command that repeats the run with these settings changed, into the folder `OUT-name`.
    pub fn rerun_command(&self, name: &str, changes: &[(&str, String)]) -> String {
        let out = format!("{}-{name}", self.plan.recipe.run.out.display());
        let key = |set: &str| set.split('=').next().unwrap_or(set).trim().to_string();
        let changed = |set: &&String| !changes.iter().any(|(k, _)| *k == key(set)) && key(set) != "run.out";
        let kept = self.plan.sets.iter().filter(changed).cloned();
        let new = changes.iter().map(|(k, v)| format!("{k}={v}"));
        let sets = kept.chain(new).chain([format!("run.out={out}")]).map(|s| format!(" --set {}", quote(&s)));
        format!("ft train {}{}", quote(&self.plan.file.display().to_string()), sets.collect::<String>())
    }

    /// Returns the `ft check` command for the run's recipe and settings.
    pub fn check_command(&self) -> String {
        let sets: String = self.plan.sets.iter().map(|s| format!(" --set {}", quote(s))).collect();
        format!("ft check {}{sets}", quote(&self.plan.file.display().to_string()))
    }

    /// Returns the `ft data inspect` command for the (first) training rows.
    pub fn inspect_command(&self) -> String {
        let path = self.plan.recipe.data.train.0.first().map(|s| quote(&s.path.display().to_string()));
        format!("ft data inspect {}", path.unwrap_or_default())
    }
}

/// Quotes a text so that a shell reads it as one word.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Builds a finding.
pub fn finding(
    id: DiagnosisId,
    title: &str,
    evidence: &[(&str, String)],
    cause: String,
    next: Vec<String>,
) -> Diagnosis {
    let evidence = evidence.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    Diagnosis { id, title: title.into(), evidence, cause, next }
}

/// Formats a number with four decimals, or in scientific notation if it is very small or large.
pub fn number(x: f64) -> String {
    if x == 0.0 || (1e-3..1e5).contains(&x.abs()) { format!("{x:.4}") } else { format!("{x:.2e}") }
}

/// Formats a learning rate with one digit, such as `2e-4`.
pub fn rate(x: f64) -> String {
    format!("{x:.0e}")
}

/// With fewer steps, no trend is judged.
pub const TREND: usize = 24;

/// Returns the mean loss of some steps.
pub fn losses(points: &[&StepPoint]) -> f64 {
    mean_of_finite(points.iter().map(|p| p.loss))
}
