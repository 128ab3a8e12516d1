//! What a recipe says about RLOO.

use crate::methods::rollout::{LimitSpec, SamplingSpec};
use crate::rewards::RewardSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RlooSpec {
    /// What answers are worth: one source of rewards or several, summed by their weights.
    pub rewards: Vec<RewardSpec>,
    /// How answers are drawn.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// Answers to each prompt.
    #[serde(default = "four")]
    #[schemars(range(min = 2))]
    pub answers: usize,
    /// What an answer's KL divergence from the reference (estimator k1, summed over its tokens) takes from its reward; 0: the reference is not asked.
    #[serde(default = "beta")]
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// The least and the most that a reward counts, before the KL divergence is taken off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_clip: Option<[f64; 2]>,
    /// Give the advantages of a draw mean 0 and deviation 1.
    #[serde(default)]
    pub normalize_advantages: bool,
    /// How far below 1 an answer's ratio may fall where the advantage is negative.
    #[serde(default = "epsilon")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub epsilon: f64,
    /// How far above 1 it may rise where the advantage is positive; left out, `epsilon`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epsilon_high: Option<f64>,
    /// Passes over a draw.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub passes: usize,
    /// Optimiser steps of a pass.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub mini_batches: usize,
    /// Leave answers that were cut off out of the loss.
    #[serde(default)]
    pub mask_truncated: bool,
    /// Where a run is in trouble.
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
    /// Whether the reference is asked.
    pub fn compares(&self) -> bool {
        self.beta != 0.0 || self.limits.kl.is_some()
    }
}
