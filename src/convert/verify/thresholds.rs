//! Decides how far the outputs of the written model may be from those of the model in memory.

use super::logit_distance::LogitDistance;
use serde::Serialize;
use tch::Kind;

/// The largest allowed distance of logits. The weights themselves are compared bit for bit, so the thresholds only have
/// to distinguish rounding errors from a model that is wired, scaled or configured wrongly.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LogitThresholds {
    /// Of [`LogitDistance::relative`].
    pub relative: f64,
    /// Of [`LogitDistance::mean_kl`].
    pub mean_kl: f64,
    /// The smallest allowed [`LogitDistance::top1_agreement`].
    pub top1_agreement: f64,
}

/// Describes how the written weights may differ from those in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::convert) enum WeightChange {
    /// Not at all: the same weights, computed in the same format.
    None,
    /// The adapter was added to the base's weights.
    Folded,
    /// The weights on disk have fewer bits than the format of the computation.
    Rounded,
}

impl LogitThresholds {
    /// Returns the limits for models that compute in `computed`.
    pub(in crate::convert) fn new(computed: Kind, change: WeightChange) -> Self {
        match (computed, change) {
            // The weights are equal. Only the order of sums may differ (another memory alignment, another GPU kernel).
            (Kind::Float, WeightChange::None) => Self { relative: 1e-5, mean_kl: 1e-8, top1_agreement: 0.99 },
            // W x + s B A x is compared with (W + s B A) x: one rounding of 2^-24 per product, amplified by the layers.
            (Kind::Float, WeightChange::Folded) => Self { relative: 1e-4, mean_kl: 1e-6, top1_agreement: 0.99 },
            // bf16 has 8 bits of precision: every product is rounded by up to 2^-9, and sums run in another order.
            (_, WeightChange::None) => Self { relative: 2e-2, mean_kl: 1e-3, top1_agreement: 0.9 },
            // Every weight was rounded as well, by up to 2^-9 of its value: logits change by some percent of the
            // largest logit, and nearly equal ones swap ranks (a 135M model: 2.5 %, mean KL 3e-3, top-1 94 %). These
            // limits are too wide to detect a lost or doubled update; the comparison of weights detects it, since they
            // must equal the float32 sum rounded once.
            (_, WeightChange::Folded | WeightChange::Rounded) => {
                Self { relative: 0.1, mean_kl: 2e-2, top1_agreement: 0.8 }
            }
        }
    }

    /// Returns a sentence for each limit that is exceeded.
    pub(in crate::convert) fn problems(&self, d: &LogitDistance) -> Vec<String> {
        let above = |found: f64, most: f64| found.is_nan() || found > most;
        let mut problems = Vec::new();
        if above(d.relative, self.relative) {
            problems.push(format!(
                "answers (logits, scores) differ by {:.2e} of the largest, at most {:.0e} expected",
                d.relative, self.relative
            ));
        }
        if above(d.mean_kl, self.mean_kl) {
            problems.push(format!("mean KL is {:.2e}, at most {:.0e} expected", d.mean_kl, self.mean_kl));
        }
        if above(-d.top1_agreement, -self.top1_agreement) {
            problems
                .push(format!("top-1 agreement is {:.3}, at least {} expected", d.top1_agreement, self.top1_agreement));
        }
        problems
    }
}
