//! What a recipe says about KTO.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kahneman-Tversky optimisation (arXiv 2402.01306): learns from answers judged one by one, good or bad; pairs are taken
/// apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KtoSpec {
    /// How much the distance from the reference weighs: the larger, the closer the model stays to it.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// What is made of one answer.
    pub loss: KtoLoss,
    /// Weight of the loss of good answers. Weight times number should be 1 to 1.33 times that of the bad ones.
    #[schemars(range(min = 0.0))]
    pub desirable_weight: f64,
    /// Weight of the loss of bad answers.
    #[schemars(range(min = 0.0))]
    pub undesirable_weight: f64,
}

impl Default for KtoSpec {
    fn default() -> Self {
        Self { beta: 0.1, loss: KtoLoss::Kto, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

/// Losses of a judged answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// The loss of the KTO paper: an answer counts against the average distance from the reference.
    #[default]
    Kto,
    /// The unpaired form of APO-zero (arXiv 2408.06266): the reference point is zero, and nothing has to be estimated.
    ApoZero,
}
