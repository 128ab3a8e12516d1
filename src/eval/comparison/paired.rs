//! Compares one model with the baseline on one task: the difference with its interval, a test, the smallest difference that the
//! items can show, and the same by category.

use super::{ChangedItems, MetricInfo, PairedMetric};
use crate::eval::results::{Direction, TaskResults};
use crate::rng;
use crate::stats::bootstrap::Estimate;
use crate::stats::moments::sample_deviation;
use crate::stats::paired::{detectable_difference, mcnemar, sign_flip};
use serde::Serialize;
use std::collections::BTreeMap;

/// A difference is shown if its corrected p-value is below this.
const SIGNIFICANT: f64 = 0.05;
/// Random signs that are drawn by the test of graded scores.
const SIGN_FLIPS: usize = 9999;
/// With fewer items, a category has no interval: resampling so few says nothing.
const FEWEST_ITEMS: usize = 5;

/// How one model compares with the baseline on one task. Differences are the model's value minus the baseline's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubjectComparison {
    /// Name of the model.
    pub subject: String,
    /// Value of the metric for the baseline.
    pub baseline_value: Option<f64>,
    /// Value of the metric for the model.
    pub value: Option<f64>,
    /// Their difference.
    pub difference: Option<f64>,
    /// Its 95 % interval by paired bootstrap over items; `None` if the metric is no mean over items or likelihood of texts.
    pub interval: Option<[f64; 2]>,
    /// The test of the difference; `None` as for the interval.
    pub test: Option<PairedTest>,
    /// The difference that as many items show in 80 % of all cases; `None` if all items score alike, or as for the interval.
    pub detectable: Option<f64>,
    /// What the test says.
    pub verdict: Verdict,
    /// Items that became better or worse; `None` as for the interval.
    pub changes: Option<ChangedItems>,
    /// The same by category, in the order of their names; empty if the items have none.
    pub categories: Vec<CategoryComparison>,
}

/// Which test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TestKind {
    /// McNemar's exact test, for scores of 0 and 1.
    Mcnemar,
    /// A randomisation test of signs, for graded scores.
    SignFlip,
}

/// A test of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedTest {
    /// Which test.
    pub kind: TestKind,
    /// Its two-sided p-value.
    pub p: f64,
    /// The p-value corrected for all tasks and models of the evaluation (Holm).
    pub p_corrected: f64,
}

/// What the test of a difference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The model is better; corrected p below 0.05.
    Better,
    /// The model is worse; corrected p below 0.05.
    Worse,
    /// The model differs, and neither end of the metric is better; corrected p below 0.05.
    Changed,
    /// No difference was shown. That does not say that there is none.
    NotShown,
    /// The metric is no mean over items or likelihood of texts, so that no paired test applies.
    NotTested,
}

/// How a model compares with the baseline on the items of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CategoryComparison {
    /// The category.
    pub category: String,
    /// Number of its items.
    pub rows: usize,
    /// The metric of the baseline.
    pub baseline_value: f64,
    /// The metric of the model.
    pub value: f64,
    /// Their difference, with its 95 % interval from five items on. Not corrected for the number of categories.
    pub difference: Estimate,
}

impl SubjectComparison {
    /// Compares subject `i` with the first one. The corrected p-value and the verdict are those of a single test; see
    /// [`Self::decide`].
    pub(super) fn of(task: &TaskResults, metric: &MetricInfo, i: usize, name: &str) -> Self {
        let value = |i: usize| task.results[i].estimates.get(&metric.name).map(|estimate| estimate.value);
        let (baseline_value, value) = (value(0), value(i));
        let paired = PairedMetric::of(task, metric, i);
        let all: Vec<usize> = (0..task.items.len()).collect();
        let estimate = paired.as_ref().and_then(|p| p.estimate(&task.name, &all, |base, subject| subject - base));
        Self {
            subject: name.to_string(),
            baseline_value,
            value,
            difference: estimate.map(|e| e.value).or_else(|| Some(value? - baseline_value?)),
            interval: estimate.and_then(|e| e.interval),
            test: paired.as_ref().map(|paired| PairedTest::of(paired, &format!("{} {name}", task.name))),
            detectable: paired.as_ref().and_then(|paired| detectable(paired, estimate?)),
            verdict: Verdict::NotTested,
            changes: paired.as_ref().map(PairedMetric::changes),
            categories: paired.map_or(Vec::new(), |paired| categories(task, &paired)),
        }
    }

    /// Sets the verdict by the corrected p-value.
    pub(super) fn decide(&mut self, direction: Direction) {
        self.verdict = match (self.test, self.difference) {
            (Some(test), Some(difference)) if test.p_corrected < SIGNIFICANT => match direction.sign() {
                Some(sign) if sign * difference > 0.0 => Verdict::Better,
                Some(_) => Verdict::Worse,
                None => Verdict::Changed,
            },
            (Some(_), _) => Verdict::NotShown,
            (None, _) => Verdict::NotTested,
        };
    }
}

impl PairedTest {
    fn of(paired: &PairedMetric, purpose: &str) -> Self {
        let improvements = paired.improvements();
        let (kind, p) = match paired.is_share() {
            true => {
                let count = |sign: f64| improvements.iter().filter(|d| sign * **d > 0.0).count();
                (TestKind::Mcnemar, mcnemar(count(1.0), count(-1.0)))
            }
            false => (TestKind::SignFlip, sign_flip(&improvements, SIGN_FLIPS, &mut rng::stream(7, purpose, 0))),
        };
        Self { kind, p, p_corrected: p }
    }
}

/// Returns the smallest difference that the items show in 80 % of all cases; `None` if no item changed, or without items.
fn detectable(paired: &PairedMetric, difference: Estimate) -> Option<f64> {
    let improvements = paired.improvements();
    let rows = improvements.len();
    let deviation = match paired.is_mean() {
        true => sample_deviation(&improvements),
        // The interval is 2 * 1.96 standard errors wide.
        false => difference.interval.map(|[low, high]| (high - low) / 3.92 * (rows as f64).sqrt())?,
    };
    detectable_difference(deviation, rows).filter(|_| deviation > 0.0)
}

fn categories(task: &TaskResults, paired: &PairedMetric) -> Vec<CategoryComparison> {
    let mut items: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, category) in task.items.iter().enumerate().filter_map(|(i, item)| Some((i, item.category.as_deref()?))) {
        items.entry(category).or_default().push(i);
    }
    let compare = |(category, items): (&str, Vec<usize>)| {
        let difference = paired.estimate(category, &items, |base, subject| subject - base)?;
        let [baseline_value, value] = paired.values(&items)?;
        Some(CategoryComparison {
            category: category.to_string(),
            rows: items.len(),
            baseline_value,
            value,
            difference: Estimate {
                interval: difference.interval.filter(|_| items.len() >= FEWEST_ITEMS),
                ..difference
            },
        })
    };
    items.into_iter().filter_map(compare).collect()
}
