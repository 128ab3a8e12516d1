//! The recipe's section for ORPO.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Odds-ratio preference optimisation (arXiv 2403.07691): supervised fine-tuning and preference in one loss, without a
/// reference model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrpoSpec {
    /// Weight of the odds ratio relative to the cross-entropy of the chosen answer (the paper's lambda).
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// Also train on the prompt's tokens, as TRL does; the paper trains on the answer only.
    pub learn_prompt: bool,
}

impl Default for OrpoSpec {
    fn default() -> Self {
        Self { beta: 0.1, learn_prompt: false }
    }
}
