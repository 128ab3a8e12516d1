//! Methods: each says which micro-batches make the next optimiser step, and is otherwise a pure function
//! from the trunk's hidden states to a loss.

pub mod sft;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The methods a recipe can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodSpec {
    /// Supervised fine-tuning: cross-entropy on the supervised tokens.
    Sft(sft::SftSpec),
}
