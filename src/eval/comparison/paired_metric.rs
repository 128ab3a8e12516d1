//! The scores of two models on the same items, and a metric of any of these items.

use crate::eval::results::{Direction, MetricInfo, SubjectResults, TaskResults};
use crate::stats::bootstrap::{Bootstrap, Estimate};
use serde::Serialize;
use std::f64::consts::LN_2;

/// Name of an item's log-likelihood (natural) among its scores.
const LOG_LIKELIHOOD: &str = "log_likelihood";
/// Metrics of the likelihood of texts, with the name of an item's count that the likelihood is divided by.
const LIKELIHOOD_METRICS: [(&str, &str, Formula); 4] = [
    ("token_perplexity", "tokens", Formula::Perplexity),
    ("word_perplexity", "words", Formula::Perplexity),
    ("byte_perplexity", "bytes", Formula::Perplexity),
    ("bits_per_byte", "bytes", Formula::Bits),
];

/// How a metric follows from the sum of the items' numbers divided by the sum of their units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Formula {
    /// It is the quotient: a mean of scores, where every unit is 1.
    Mean,
    /// It is exp(-quotient), of log-likelihoods.
    Perplexity,
    /// It is -quotient / ln 2, of log-likelihoods.
    Bits,
}

/// The numbers of two models on the same items.
#[derive(Debug, Clone, PartialEq)]
pub struct PairedMetric {
    formula: Formula,
    /// Whether a larger number of an item counts as a better one: also if neither end of the metric is better.
    larger_is_better: bool,
    baseline: Vec<f64>,
    subject: Vec<f64>,
    units: Vec<f64>,
}

/// Items (counted from 0) whose score differs from the baseline's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChangedItems {
    /// Whether every score is 0 or 1: then `better` were wrong and are right, and `worse` the other way round.
    pub flips: bool,
    /// Items with a better score, the largest change first; if neither end of the metric is better, those with a larger one.
    pub better: Vec<usize>,
    /// Items with a worse score, the largest change first; if neither end is better, those with a smaller one.
    pub worse: Vec<usize>,
}

impl PairedMetric {
    /// Returns the numbers of a subject beside those of the baseline. `None` for a metric that is neither a mean over items nor one of
    /// the likelihood of texts, and for a perplexity by token of models whose tokens differ, which compares nothing.
    pub fn of(task: &TaskResults, metric: &MetricInfo, subject: usize) -> Option<Self> {
        let read = |results: &SubjectResults, name: &str| -> Option<Vec<f64>> {
            results.answers.iter().map(|answer| answer.scores.get(name).copied()).collect()
        };
        let (baseline, subject) = (&task.results[0], &task.results[subject]);
        if metric.is_mean {
            return Some(Self {
                formula: Formula::Mean,
                larger_is_better: metric.direction() != Direction::Lower,
                baseline: read(baseline, &metric.name)?,
                subject: read(subject, &metric.name)?,
                units: vec![1.0; task.items.len()],
            });
        }
        let (_, unit, formula) = LIKELIHOOD_METRICS.into_iter().find(|(name, ..)| *name == metric.name)?;
        let (units, of_subject) = (read(baseline, unit)?, read(subject, unit)?);
        (units == of_subject && units.iter().all(|n| *n > 0.0)).then_some(())?;
        Some(Self {
            formula,
            larger_is_better: true,
            baseline: read(baseline, LOG_LIKELIHOOD)?,
            subject: read(subject, LOG_LIKELIHOOD)?,
            units,
        })
    }

    /// Returns the metric of the baseline and of the subject on some of the items; `None` without items.
    pub fn values(&self, items: &[usize]) -> Option<[f64; 2]> {
        let drawn = vec![1.0; items.len()];
        (!items.is_empty()).then(|| [&self.baseline, &self.subject].map(|numbers| self.value(numbers, items, &drawn)))
    }

    /// Returns the metric of items, of which item `items[i]` was drawn `drawn[i]` times.
    fn value(&self, numbers: &[f64], items: &[usize], drawn: &[f64]) -> f64 {
        let sum = |of: &[f64]| drawn.iter().zip(items).map(|(times, item)| times * of[*item]).sum::<f64>();
        self.formula.apply(sum(numbers) / sum(&self.units))
    }

    /// Estimates a number that depends on the metric of the baseline and of the subject, on some of the items, by paired bootstrap.
    /// `None` without items.
    pub fn estimate(&self, purpose: &str, items: &[usize], combine: impl Fn(f64, f64) -> f64) -> Option<Estimate> {
        let rows: Vec<usize> = (0..items.len()).collect();
        let statistic = |drawn: &[f64]| {
            let [base, subject] = [&self.baseline, &self.subject].map(|numbers| self.value(numbers, items, drawn));
            let found = combine(base, subject);
            (!items.is_empty() && found.is_finite()).then_some(found)
        };
        Bootstrap::default().estimate(purpose, &rows, items.len(), statistic)
    }

    /// Returns how much better the subject's number of each item is; below 0 it is worse. How much larger, if neither end is better.
    pub fn improvements(&self) -> Vec<f64> {
        let sign = if self.larger_is_better { 1.0 } else { -1.0 };
        self.subject.iter().zip(&self.baseline).map(|(a, b)| sign * (a - b)).collect()
    }

    /// Returns true if the metric is a mean over items.
    pub fn is_mean(&self) -> bool {
        self.formula == Formula::Mean
    }

    /// Returns true if the metric is a mean of scores that are all 0 or 1.
    pub fn is_share(&self) -> bool {
        let all = || self.subject.iter().chain(&self.baseline);
        self.is_mean() && all().all(|score| *score == 0.0 || *score == 1.0)
    }

    /// Returns the items that changed, likelihoods by unit.
    pub fn changes(&self) -> ChangedItems {
        let by_unit: Vec<f64> = self.improvements().iter().zip(&self.units).map(|(d, units)| d / units).collect();
        let sorted = |sign: f64| {
            let mut items: Vec<usize> = (0..by_unit.len()).filter(|i| sign * by_unit[*i] > 0.0).collect();
            items.sort_by(|a, b| by_unit[*b].abs().total_cmp(&by_unit[*a].abs()));
            items
        };
        ChangedItems { flips: self.is_share(), better: sorted(1.0), worse: sorted(-1.0) }
    }
}

impl Formula {
    fn apply(self, quotient: f64) -> f64 {
        match self {
            Self::Mean => quotient,
            Self::Perplexity => (-quotient).exp(),
            Self::Bits => -quotient / LN_2,
        }
    }
}
