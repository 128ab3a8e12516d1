//! The recipe's section for GRPO.

use crate::methods::rollout::spec::{LimitSpec, SamplingSpec};
use crate::rewards::RewardSourceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) and its variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpoSpec {
    /// Where rewards come from: one source or several, added up with their weights.
    pub rewards: Vec<RewardSourceSpec>,
    /// How answers are sampled.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// Answers to each prompt; together they are its group.
    #[serde(default = "eight")]
    #[schemars(range(min = 2))]
    pub answers: usize,
    /// How the losses of tokens are averaged, and which ratio is clipped.
    #[serde(default)]
    pub loss: GrpoLoss,
    /// What advantages are divided by; default: `group`, but `none` for `dr_grpo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rewards: Option<ScaleRewards>,
    /// How far below 1 a ratio may fall if the advantage is negative; default: 0.2, but 0.0003 for `gspo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub epsilon: Option<f64>,
    /// How far above 1 a ratio may rise if the advantage is positive; default: `epsilon`, but 0.28 for `dapo` and
    /// 0.0004 for `gspo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub epsilon_high: Option<f64>,
    /// Upper limit of the ratio if the advantage is negative (two-sided clipping, arXiv 2505.07291); default: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0))]
    pub delta: Option<f64>,
    /// Weight of the KL divergence from the reference (estimator k3) in the loss; 0: no reference model is used.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// Multiply the KL estimate by the probability ratio, which makes the gradient of the estimate unbiased
    /// (DeepSeek-V3.2, arXiv 2512.02556); on, as in TRL since 1.16.
    #[serde(default = "yes")]
    pub kl_correction: bool,
    /// Weight of the tokens' mean entropy, as a bonus.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub entropy: f64,
    /// Passes over the sampled answers before new ones are sampled.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub passes: usize,
    /// Optimiser steps per pass.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub mini_batches: usize,
    /// Leave truncated answers out of the loss (overlong filtering of DAPO).
    #[serde(default)]
    pub mask_truncated: bool,
    /// Replace prompts whose answers all got the same reward by others; at most this many further rounds of sampling
    /// (dynamic sampling of DAPO).
    #[serde(default)]
    pub resample: usize,
    /// Limits beyond which an alarm is given.
    #[serde(default)]
    pub limits: LimitSpec,
}

/// How the losses of tokens are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrpoLoss {
    /// The mean over an answer's tokens, then over answers: a token of a long answer weighs less.
    Grpo,
    /// The sum over an answer's tokens, divided by the maximum length (Liu et al. 2025, arXiv 2503.20783): no bias by
    /// length.
    DrGrpo,
    /// The mean over all tokens of the step (Yu et al. 2025, arXiv 2503.14476): every token weighs the same.
    #[default]
    Dapo,
    /// Like `grpo`, but an answer has a single ratio, the geometric mean of its tokens' ratios (Zheng et al. 2025,
    /// arXiv 2507.18071).
    Gspo,
}

/// What advantages are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group's rewards.
    Group,
    /// The standard deviation of all rewards that were sampled together.
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
    /// Returns true if the reference model is needed.
    pub fn needs_reference(&self) -> bool {
        self.beta != 0.0 || self.limits.kl.is_some()
    }

    /// Returns what advantages are divided by, with the default filled in.
    pub fn scale(&self) -> ScaleRewards {
        self.scale_rewards.unwrap_or(match self.loss {
            GrpoLoss::DrGrpo => ScaleRewards::None,
            _ => ScaleRewards::Group,
        })
    }

    /// Returns how far a ratio may be below and above 1, with defaults filled in.
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
