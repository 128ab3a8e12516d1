//! What a recipe says about a reward model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A reward model: one number for an answer, higher for the one that people prefer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardSpec {
    /// Whether a row's `margin` is asked for between its two scores.
    pub margin: Margins,
    /// Weight of `(r_chosen + r_rejected)²`, which keeps scores around zero; 0.01 is usual.
    #[schemars(range(min = 0.0))]
    pub center: f64,
    /// Share of pairs that are taken to be labelled the wrong way round.
    #[schemars(range(min = 0.0, max = 0.49))]
    pub label_smoothing: f64,
}

/// What is made of the margins that rows state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Margins {
    /// The chosen score must exceed the other by the row's `margin`; by nothing where a row has none.
    #[default]
    Rows,
    /// Margins are passed over.
    None,
}
