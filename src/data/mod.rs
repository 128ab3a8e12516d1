//! From files of rows to token ids with a loss mask.
//!
//! source (polars) -> record (one of the known row shapes) -> template + tokenizer -> example (ids + mask)
//! -> pack (rows of several examples) -> loader (which examples make the next step).
//! Nothing here knows a model or a tensor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which tokens of a conversation are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant turn with its end token (for prompt and completion: the completion).
    #[default]
    Assistant,
    /// Only the last assistant turn.
    Last,
    /// Every token.
    All,
}
