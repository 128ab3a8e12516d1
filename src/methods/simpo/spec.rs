//! The recipe's section for SimPO.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Simple preference optimisation (arXiv 2405.14734): compares mean log-probabilities, without a reference model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SimpoSpec {
    /// Scale of the difference between mean log-probabilities; the paper uses 2 to 10.
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// The margin by which the chosen answer should win, after scaling; the paper uses 0.3 to 1.6.
    #[schemars(range(min = 0.0))]
    pub gamma: f64,
    /// The probability that a pair's labels are swapped.
    #[schemars(range(min = 0.0, max = 0.499))]
    pub label_smoothing: f64,
    /// Weight of the chosen answer's cross-entropy, added to the loss; keeps its probability from falling.
    #[schemars(range(min = 0.0))]
    pub nll: f64,
}

impl Default for SimpoSpec {
    fn default() -> Self {
        Self { beta: 2.0, gamma: 0.5, label_smoothing: 0.0, nll: 0.0 }
    }
}
