//! The list of the kinds of adapters.

use super::adalora::AdaloraSpec;
use super::bitfit::BitfitSpec;
use super::ia3::Ia3Spec;
use super::kind::AdapterKind;
use super::ln_tuning::LnTuningSpec;
use super::loha::LohaSpec;
use super::lokr::LokrSpec;
use super::lora::LoraSpec;
use super::oft::OftSpec;
use super::trainable_tokens::TrainableTokensSpec;
use super::vera::VeraSpec;
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
    /// Factors on the outputs of keys and values and on the inputs of the MLP's last layer (IA3: Liu et al. 2022, arXiv
    /// 2205.05638).
    Ia3(Ia3Spec),
    /// Trains the norms alone (LayerNorm tuning: Zhao et al. 2023, arXiv 2312.11420).
    LnTuning(LnTuningSpec),
    /// Trains the biases alone (BitFit: Ben Zaken et al. 2021, arXiv 2106.10199).
    Bitfit(BitfitSpec),
    /// Random shared projections with trained vectors (VeRA: Kopiczko et al. 2023, arXiv 2310.11454).
    Vera(VeraSpec),
    /// The elementwise product of two low-rank matrices (LoHa: Hyeon-Woo et al. 2021, arXiv 2108.06098).
    Loha(LohaSpec),
    /// A Kronecker product (LoKr: Edalati et al. 2022, arXiv 2212.10650).
    Lokr(LokrSpec),
    /// Rotations of blocks of the inputs (OFT: Qiu et al. 2023, arXiv 2306.07280).
    Oft(OftSpec),
    /// Low-rank updates whose ranks fall during training (AdaLoRA: Zhang et al. 2023, arXiv 2303.10512).
    Adalora(AdaloraSpec),
    /// Trains the rows of a few tokens in full (TRAINABLE_TOKENS of PEFT).
    TrainableTokens(TrainableTokensSpec),
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
            Self::Ia3(spec) => spec,
            Self::LnTuning(spec) => spec,
            Self::Bitfit(spec) => spec,
            Self::Vera(spec) => spec,
            Self::Loha(spec) => spec,
            Self::Lokr(spec) => spec,
            Self::Oft(spec) => spec,
            Self::Adalora(spec) => spec,
            Self::TrainableTokens(spec) => spec,
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
            Self::Ia3(spec) => spec,
            Self::LnTuning(spec) => spec,
            Self::Bitfit(spec) => spec,
            Self::Vera(spec) => spec,
            Self::Loha(spec) => spec,
            Self::Lokr(spec) => spec,
            Self::Oft(spec) => spec,
            Self::Adalora(spec) => spec,
            Self::TrainableTokens(spec) => spec,
        }
    }
}
