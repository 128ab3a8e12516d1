//! What a recipe says about SimPO.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Simple preference optimisation (arXiv 2405.14734): compares mean log-probabilities, no reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimpoSpec {
    /// Scale of the difference between mean log-probabilities; the paper takes 2 to 10.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// The margin by which the chosen answer should win, after scaling; the paper takes 0.3 to 1.6.
    #[schemars(range(min = 0.0))]
    pub gamma: f64,
    /// The chance that a pair is the wrong way round.
    #[schemars(range(min = 0.0, max = 0.499))]
    pub label_smoothing: f64,
    /// Weight of the cross-entropy of the chosen answer beside the loss; keeps its probability from falling.
    #[schemars(range(min = 0.0))]
    pub nll: f64,
}

impl Default for SimpoSpec {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 0.5, label_smoothing: 0.0, nll: 0.0 }
    }
}
