//! What a recipe says about GRPO.

use crate::methods::rollout::{LimitSpec, SamplingSpec};
use crate::rewards::RewardSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) and its variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpoSpec {
    /// What answers are worth: one source of rewards or several, summed by their weights.
    pub rewards: Vec<RewardSpec>,
    /// How answers are drawn.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// Answers to each prompt: the group.
    #[serde(default = "eight")]
    #[schemars(range(min = 2))]
    pub answers: usize,
    /// How tokens' losses become one, and which ratio is clipped.
    #[serde(default)]
    pub loss: GrpoLoss,
    /// What advantages are divided by; left out, `group`, and `none` for `dr_grpo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rewards: Option<ScaleRewards>,
    /// How far below 1 a ratio may fall where the advantage is negative; left out, 0.2, and 0.0003 for `gspo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub epsilon: Option<f64>,
    /// How far above 1 a ratio may rise where the advantage is positive; left out, `epsilon`, but 0.28 for `dapo` and 0.0004 for `gspo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epsilon_high: Option<f64>,
    /// The most that a ratio counts where the advantage is negative (two-sided clipping, arXiv 2505.07291); left out, no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0))]
    pub delta: Option<f64>,
    /// What the KL divergence from the reference (estimator k3) counts in the loss; 0: the reference is not asked.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// Multiply the KL estimate by the probability ratio, whose gradient makes that of the estimate unbiased (DeepSeek-V3.2, arXiv 2512.02556); on, as in TRL since 1.16.
    #[serde(default = "yes")]
    pub kl_correction: bool,
    /// What the tokens' mean entropy counts as a bonus.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub entropy: f64,
    /// Passes over a draw.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub passes: usize,
    /// Optimiser steps of a pass.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub mini_batches: usize,
    /// Leave answers that were cut off out of the loss (overlong filtering of DAPO).
    #[serde(default)]
    pub mask_truncated: bool,
    /// Replace prompts whose answers all got the same reward, by so many further draws at most (dynamic sampling of DAPO).
    #[serde(default)]
    pub resample: usize,
    /// Where a run is in trouble.
    #[serde(default)]
    pub limits: LimitSpec,
}

/// How tokens' losses become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrpoLoss {
    /// The mean over an answer's tokens, then over answers: long answers weigh less a token.
    Grpo,
    /// The sum over an answer's tokens over the longest length (Liu et al. 2025, arXiv 2503.20783): no bias by length.
    DrGrpo,
    /// The mean over all tokens of the step (Yu et al. 2025, arXiv 2503.14476): every token weighs the same.
    #[default]
    Dapo,
    /// As `grpo`, but an answer has one ratio, the geometric mean of its tokens' (Zheng et al. 2025, arXiv 2507.18071).
    Gspo,
}

/// What advantages are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group's rewards.
    Group,
    /// The standard deviation of all rewards of the draw.
    Batch,
    /// Nothing.
    None,
}

fn eight() -> usize {
    8
}
fn one() -> usize {
    1
}
fn yes() -> bool {
    true
}

impl GrpoSpec {
    /// Whether the reference is asked.
    pub fn compares(&self) -> bool {
        self.beta != 0.0 || self.limits.kl.is_some()
    }

    /// What advantages are divided by, the default filled in.
    pub fn scale(&self) -> ScaleRewards {
        self.scale_rewards.unwrap_or(match self.loss {
            GrpoLoss::DrGrpo => ScaleRewards::None,
            _ => ScaleRewards::Group,
        })
    }

    /// The ratios' lower and upper distance from 1, defaults filled in.
    pub fn clip(&self) -> (f64, f64) {
        let low = self.epsilon.unwrap_or(if self.loss == GrpoLoss::Gspo { 3e-4 } else { 0.2 });
        let high = self.epsilon_high.unwrap_or(match self.loss {
            GrpoLoss::Dapo => 0.28,
            GrpoLoss::Gspo => 4e-4,
            _ => low,
        });
        (low, high)
    }
}
