//! The recipe's section for RLOO.

use crate::methods::rollout::spec::{LimitSpec, SamplingSpec};
use crate::rewards::RewardSourceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RlooSpec {
    /// Where rewards come from: one source or several, added up with their weights.
    pub rewards: Vec<RewardSourceSpec>,
    /// How answers are sampled.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// Answers to each prompt.
    #[serde(default = "four")]
    #[schemars(range(min = 2))]
    pub answers: usize,
    /// Weight of an answer's KL divergence from the reference (estimator k1, summed over its tokens), which is
    /// subtracted from its reward; 0: no reference model is used.
    #[serde(default = "beta")]
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// Minimum and maximum to which a reward is clipped, before the KL divergence is subtracted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_clip: Option<[f64; 2]>,
    /// Normalise the advantages of one round of sampling to mean 0 and standard deviation 1.
    #[serde(default)]
    pub normalize_advantages: bool,
    /// How far below 1 an answer's ratio may fall if the advantage is negative.
    #[serde(default = "epsilon")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub epsilon: f64,
    /// How far above 1 an answer's ratio may rise if the advantage is positive; default: `epsilon`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epsilon_high: Option<f64>,
    /// Passes over the sampled answers before new ones are sampled.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub passes: usize,
    /// Optimiser steps per pass.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub mini_batches: usize,
    /// Leave truncated answers out of the loss.
    #[serde(default)]
    pub mask_truncated: bool,
    /// Limits beyond which an alarm is given.
    #[serde(default)]
    pub limits: LimitSpec,
}

fn four() -> usize {
    4
}
fn one() -> usize {
    1
}
fn beta() -> f64 {
    0.05
}
fn epsilon() -> f64 {
    0.2
}

impl RlooSpec {
    /// Returns true if the reference model is needed.
    pub fn needs_reference(&self) -> bool {
        self.beta != 0.0 || self.limits.kl.is_some()
    }
}
