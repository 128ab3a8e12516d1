//! How much better an answer is than the others to its prompt.
//!
//! With R_i = clip(reward_i) - beta Σ_t (old - reference) and k answers to a prompt:
//!
//! ```text
//! A_i  = R_i - 1/(k-1) Σ_{j≠i} R_j                         Ahmadian et al. 2024, arXiv 2402.14740, the RLOO estimator
//! ```

use super::spec::RlooSpec;
use crate::methods::rollout::advantages::{Advantages, RolloutRewards, are_uniform};
use crate::stats::moments::{mean, sample_deviation};

/// Computes one advantage per answer; 0 for the answers of a group whose rewards are all equal.
pub fn advantages(spec: &RlooSpec, judged: &RolloutRewards) -> Advantages {
    let [least, most] = spec.reward_clip.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
    let mut rewards: Vec<f64> = judged.rewards.iter().map(|r| r.clamp(least, most)).collect();
    let mut more = Vec::new();
    if let Some(kl) = judged.kl.filter(|_| spec.beta != 0.0) {
        rewards.iter_mut().zip(kl).for_each(|(r, kl)| *r -= spec.beta * kl);
        more.push(("kl".into(), kl.iter().sum::<f64>() / judged.lengths.iter().sum::<f64>()));
    }
    let (mut values, mut uniform) = (Vec::with_capacity(rewards.len()), 0);
    for group in rewards.chunks(judged.answers_per_prompt) {
        let same = are_uniform(group);
        uniform += if same { group.len() } else { 0 };
        let (sum, others) = (group.iter().sum::<f64>(), (group.len() - 1).max(1) as f64);
        values.extend(group.iter().map(|r| if same { 0.0 } else { r - (sum - r) / others }));
    }
    if spec.normalize_advantages {
        let (middle, spread) = (mean(&values), sample_deviation(&values));
        values.iter_mut().for_each(|a| *a = (*a - middle) / (spread + 1e-4));
    }
    Advantages { uniform_share: uniform as f64 / values.len().max(1) as f64, values, more }
}
