//! The list of the kinds of adapters.

use super::kind::AdapterKind;
use super::lora::LoraSpec;
use super::virtual_tokens::{PTuningSpec, PrefixTuningSpec, PromptTuningSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::{Deref, DerefMut};

/// The kinds of adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterSpec {
    /// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).
    Lora(LoraSpec),
    /// Prompt tuning (Lester et al. 2021, arXiv 2104.08691).
    PromptTuning(PromptTuningSpec),
    /// P-tuning (Liu et al. 2021, arXiv 2103.10385).
    PTuning(PTuningSpec),
    /// Prefix tuning (Li and Liang 2021, arXiv 2101.00190).
    PrefixTuning(PrefixTuningSpec),
}

impl AdapterSpec {
    /// Returns the settings of a plain LoRA, for programs that read no other kind; `None` for other kinds.
    pub fn as_lora(&self) -> Option<&LoraSpec> {
        match self {
            Self::Lora(spec) => Some(spec),
            _ => None,
        }
    }
}

impl Deref for AdapterSpec {
    type Target = dyn AdapterKind;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Lora(spec) => spec,
            Self::PromptTuning(spec) => spec,
            Self::PTuning(spec) => spec,
            Self::PrefixTuning(spec) => spec,
        }
    }
}

impl DerefMut for AdapterSpec {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Lora(spec) => spec,
            Self::PromptTuning(spec) => spec,
            Self::PTuning(spec) => spec,
            Self::PrefixTuning(spec) => spec,
        }
    }
}
