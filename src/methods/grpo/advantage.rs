//! How much better an answer is than the others to its prompt: `A = (r - mean) / (std + 1e-4)`, or `r - mean`.
//!
//! Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; without the deviation Liu et al. 2025 (arXiv 2503.20783),
//! section 3.2. The deviation is the unbiased one; 1e-4 is TRL's constant. Departure from TRL: if all rewards of a
//! group are equal, the advantage is exactly 0, not a rounding error divided by 1e-4.

use super::spec::ScaleRewards;
use crate::methods::rollout::objective::{Advantages, RolloutRewards};
use crate::stats::moments::{mean, sample_deviation};

/// Added to the deviation, so that it can divide.
const EPSILON: f64 = 1e-4;
/// A standard deviation below this counts as zero.
pub const NONE: f64 = 1e-8;

/// Computes one advantage per answer; `flat` is the share of answers whose standard deviation (of their group, or of
/// the batch) is zero.
pub fn advantages(drawn: &RolloutRewards, scale: ScaleRewards) -> Advantages {
    let whole = sample_deviation(drawn.rewards);
    let (mut values, mut flat) = (Vec::with_capacity(drawn.rewards.len()), 0);
    for group in drawn.rewards.chunks(drawn.answers_per_prompt) {
        let (middle, own) = (mean(group), sample_deviation(group));
        let spread = if scale == ScaleRewards::Batch { whole } else { own };
        flat += if spread < NONE { group.len() } else { 0 };
        let divisor = if scale == ScaleRewards::None { 1.0 } else { spread + EPSILON };
        values.extend(group.iter().map(|r| if own < NONE { 0.0 } else { (r - middle) / divisor }));
    }
    let flat = flat as f64 / drawn.rewards.len().max(1) as f64;
    Advantages { values, uniform_share: flat, more: Vec::new() }
}
