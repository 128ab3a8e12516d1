//! The recipe's section for supervised fine-tuning.

use crate::data::encode::Supervise;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SftSpec {
    /// Which tokens are trained on.
    pub supervise: Supervise,
}
