//! Finds the items on which a model became better or worse than the baseline.

use super::MetricInfo;
use crate::eval::results::TaskResults;
use serde::Serialize;

/// The scores of two models on the same items, in the order of the items. A larger score is a better one.
#[derive(Debug, Clone, PartialEq)]
pub struct PairedScores {
    /// Scores of the baseline.
    pub baseline: Vec<f64>,
    /// Scores of the model.
    pub subject: Vec<f64>,
}

/// Items (counted from 0) whose score differs from the baseline's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChangedItems {
    /// Whether every score is 0 or 1: then `better` were wrong and are right, and `worse` the other way round.
    pub flips: bool,
    /// Items with a better score, the largest change first.
    pub better: Vec<usize>,
    /// Items with a worse score, the largest change first.
    pub worse: Vec<usize>,
}

impl PairedScores {
    /// Returns the scores of a subject beside those of the baseline; `None` if the metric is not a mean over items. Scores of
    /// which smaller ones are better change their sign.
    pub fn of(task: &TaskResults, metric: &MetricInfo, subject: usize) -> Option<Self> {
        let sign = if metric.higher_is_better { 1.0 } else { -1.0 };
        let scores = |i: usize| -> Option<Vec<f64>> {
            task.results[i].answers.iter().map(|answer| answer.scores.get(&metric.name).map(|s| sign * s)).collect()
        };
        metric.is_mean.then(|| Some(Self { baseline: scores(0)?, subject: scores(subject)? })).flatten()
    }

    /// Returns the differences from the baseline; above 0 the subject is better.
    pub fn differences(&self) -> Vec<f64> {
        self.subject.iter().zip(&self.baseline).map(|(a, b)| a - b).collect()
    }

    /// Returns true if every score is 0 or 1 (or -1, for errors).
    pub fn are_right_or_wrong(&self) -> bool {
        self.subject.iter().chain(&self.baseline).all(|score| [0.0, 1.0, -1.0].contains(score))
    }

    /// Returns the items that changed.
    pub fn changes(&self) -> ChangedItems {
        let differences = self.differences();
        let sorted = |sign: f64| {
            let mut items: Vec<usize> = (0..differences.len()).filter(|i| sign * differences[*i] > 0.0).collect();
            items.sort_by(|a, b| differences[*b].abs().total_cmp(&differences[*a].abs()));
            items
        };
        ChangedItems { flips: self.are_right_or_wrong(), better: sorted(1.0), worse: sorted(-1.0) }
    }
}
