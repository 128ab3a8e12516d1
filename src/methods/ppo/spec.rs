//! The recipe's section for proximal policy optimisation. Defaults are TRL's.

use super::kl::KlEstimator;
use crate::adapters::LoraSpec;
use crate::methods::rollout::spec::SamplingSpec;
use crate::rewards::RewardSourceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Proximal policy optimisation: answers are sampled, rewarded, and made more or less likely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PpoSpec {
    /// The sources of rewards; an answer's reward is their weighted sum.
    #[schemars(length(min = 1))]
    pub rewards: Vec<RewardSourceSpec>,
    /// How answers are sampled.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// Number of answers to each prompt of an iteration.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub answers: usize,
    /// Passes over an iteration's answers.
    #[serde(default = "epochs")]
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Optimiser steps per pass.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub mini_batches: usize,
    /// The value function, which predicts the reward.
    #[serde(default, with = "crate::choice")]
    #[schemars(with = "ValueSpec")]
    pub value: ValueSpec,
    /// Weight of the value function's loss.
    #[serde(default = "value_coef")]
    #[schemars(range(min = 0.0))]
    pub value_coef: f64,
    /// How the policy is kept near the reference: the base without the adapter, or a frozen copy if the whole model is
    /// trained.
    #[serde(default)]
    pub kl: KlSpec,
    /// Discount of later rewards.
    #[serde(default = "whole")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub gamma: f64,
    /// Of advantage estimation: 0 relies on the value function, 1 on the actual rewards.
    #[serde(default = "lambda")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lambda: f64,
    /// Divide the rewards of tokens by their standard deviation over the iteration.
    #[serde(default)]
    pub whiten_rewards: bool,
    /// Normalise the advantages of an iteration to mean 0 and standard deviation 1.
    #[serde(default = "yes")]
    pub whiten_advantages: bool,
    /// How far from 1 the ratio of new to old probability may be before it is clipped; 0: no clipping.
    #[serde(default = "clip")]
    #[schemars(range(min = 0.0))]
    pub clip: f64,
    /// How far from its old value a new value may be before it is clipped; 0: no clipping.
    #[serde(default = "clip")]
    #[schemars(range(min = 0.0))]
    pub clip_value: f64,
    /// Weight of the policy's entropy, as a bonus that keeps answers varied.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub entropy_coef: f64,
    /// When to give an alarm, and when to stop the run.
    #[serde(default)]
    pub alarms: AlarmSpec,
}

impl PpoSpec {
    /// Returns the number of optimiser steps per iteration.
    pub fn steps(&self) -> u64 {
        (self.epochs * self.mini_batches) as u64
    }
}

/// The value function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueSpec {
    /// A linear head on the policy's own hidden states: needs no pass of its own.
    Head(ValueHeadSpec),
    /// A LoRA adapter of its own on the same base, with a head: needs one more pass, and its loss does not change the
    /// policy.
    Adapter(Box<LoraSpec>),
}

impl Default for ValueSpec {
    fn default() -> Self {
        Self::Head(ValueHeadSpec::default())
    }
}

/// A linear head on the policy's hidden states.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValueHeadSpec {
    /// Train only the head with the value loss, not the policy's layers.
    pub detach: bool,
}

/// Where the KL divergence is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// It is subtracted from the reward of each token.
    #[default]
    Reward,
    /// It is a term of the loss.
    Loss,
}

/// How the policy is kept near the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KlSpec {
    /// Weight of the KL divergence; with `target`, its initial value.
    #[schemars(range(min = 0.0))]
    pub coef: f64,
    /// How the divergence is estimated from sampled tokens.
    pub estimator: KlEstimator,
    /// Where the divergence is used.
    pub place: KlPlace,
    /// Target of the divergence in nats per answer: the weight is adjusted to reach it; default: the weight is
    /// constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001))]
    pub target: Option<f64>,
    /// With `target`: number of answers in which the weight can change by its own size.
    #[schemars(range(min = 1.0))]
    pub horizon: f64,
}

impl Default for KlSpec {
    fn default() -> Self {
        Self { coef: 0.05, estimator: KlEstimator::K1, place: KlPlace::Reward, target: None, horizon: 10_000.0 }
    }
}

fn epochs() -> usize {
    4
}
fn one() -> usize {
    1
}
fn value_coef() -> f64 {
    0.1
}
fn whole() -> f64 {
    1.0
}
fn lambda() -> f64 {
    0.95
}
fn yes() -> bool {
    true
}
fn clip() -> f64 {
    0.2
}

/// Limits beyond which an alarm is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlarmSpec {
    /// End the run and keep its best checkpoint if the divergence is negative or above its limit, or if the reward
    /// rises while the reward minus the divergence falls. If false, these are only reported, like the other alarms.
    pub stop: bool,
    /// Largest KL divergence from the reference in nats per answer, averaged over an iteration.
    #[schemars(range(min = 0.0))]
    pub kl: f64,
    /// Largest deviation from 1 of the ratio of new to old probability: the mean of `(ratio - 1)^2` over a step's
    /// tokens.
    #[schemars(range(min = 0.0))]
    pub ratio: f64,
    /// Largest difference between the log-probabilities of rollouts and of training before the first update of an
    /// iteration, averaged over its tokens.
    #[schemars(range(min = 0.0))]
    pub drift: f64,
    /// Smallest share of its initial entropy that the policy must keep.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub entropy: f64,
    /// How many times longer or shorter than at the beginning answers may become.
    #[schemars(range(min = 1.0))]
    pub length: f64,
    /// How far the share of answers that end by themselves may fall.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ended: f64,
}

impl Default for AlarmSpec {
    fn default() -> Self {
        Self { stop: true, kl: 30.0, ratio: 1.0, drift: 0.1, entropy: 0.1, length: 2.0, ended: 0.25 }
    }
}
