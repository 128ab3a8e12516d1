//! The recipe's section for a reward model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A reward model: one number per answer, higher for the answer that people prefer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardMethodSpec {
    /// Whether the two scores of a pair must differ by the row's `margin`.
    pub margin: MarginChoice,
    /// Weight of `(r_chosen + r_rejected)²`, which keeps scores around zero; 0.01 is usual.
    #[schemars(range(min = 0.0))]
    pub center: f64,
    /// Assumed share of pairs whose labels are swapped.
    #[schemars(range(min = 0.0, max = 0.49))]
    pub label_smoothing: f64,
}

/// How the margins of rows are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MarginChoice {
    /// The chosen score must exceed the rejected one by the row's `margin`, or by nothing if the row has none.
    #[default]
    Rows,
    /// Margins are ignored.
    None,
}
