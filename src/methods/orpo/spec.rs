//! What a recipe says about ORPO.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Odds-ratio preference optimisation (arXiv 2403.07691): supervised fine-tuning and preference in one, no reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrpoSpec {
    /// Weight of the odds ratio beside the cross-entropy of the chosen answer (the paper's lambda).
    #[schemars(range(min = 0.000001, max = 100.0))]
    pub beta: f64,
    /// Also learn the prompt's own tokens, as TRL does; the paper learns the answer.
    pub learn_prompt: bool,
}

impl Default for OrpoSpec {
    fn default() -> Self {
        Self { beta: 0.1, learn_prompt: false }
    }
}
