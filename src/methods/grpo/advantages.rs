//! How much better an answer is than the others to its prompt: `A = (r - mean) / (std + 1e-4)`, or `r - mean`.
//!
//! Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; without the deviation Liu et al. 2025 (arXiv 2503.20783),
//! section 3.2. The deviation is the unbiased one; 1e-4 is TRL's constant. Departure from TRL: if all rewards of a
//! group are equal, the advantage is exactly 0, not a rounding error divided by 1e-4.

use super::spec::ScaleRewards;
use crate::methods::rollout::advantages::{Advantages, RolloutRewards, is_uniform};
use crate::stats::moments::{mean, sample_deviation};

/// Added to the deviation, so that it can divide.
const EPSILON: f64 = 1e-4;

/// Computes one advantage per answer; the uniform share is that of answers whose standard deviation (of their group, or
/// of the batch) is zero.
pub fn advantages(judged: &RolloutRewards, scale: ScaleRewards) -> Advantages {
    let batch = sample_deviation(judged.rewards);
    let (mut values, mut uniform) = (Vec::with_capacity(judged.rewards.len()), 0);
    for group in judged.rewards.chunks(judged.answers_per_prompt) {
        let (middle, own) = (mean(group), sample_deviation(group));
        let spread = if scale == ScaleRewards::Batch { batch } else { own };
        uniform += if is_uniform(spread) { group.len() } else { 0 };
        let divisor = if scale == ScaleRewards::None { 1.0 } else { spread + EPSILON };
        values.extend(group.iter().map(|r| if is_uniform(own) { 0.0 } else { (r - middle) / divisor }));
    }
    let uniform_share = uniform as f64 / judged.rewards.len().max(1) as f64;
    Advantages { values, uniform_share, more: Vec::new() }
}
