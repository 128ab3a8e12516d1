//! Number formats of weights and arithmetic, as recipes name them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// A number format of frozen weights and of arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// bfloat16: half the memory; adapters and optimiser state stay in float32.
    #[default]
    Bf16,
    /// float32: twice the memory of bf16, for reference numbers.
    F32,
}

impl Dtype {
    pub fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }
}
