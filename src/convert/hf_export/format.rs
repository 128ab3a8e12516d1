//! The number formats of a Hugging Face directory, and what transformers has no form for.

use crate::error::{Error, Result};
use crate::models::{Config, SCORE};
use crate::nn::Weights;
use tch::Kind;

/// The number format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfFormat {
    /// Each tensor in its own dtype.
    Own,
    /// All numbers in float32.
    Float32,
    /// All numbers in bfloat16.
    BFloat16,
    /// All numbers in float16.
    Float16,
    /// Matrices of linear layers in FP8 (e4m3) with a scale for each block; all else in its own dtype.
    Fp8,
    /// Matrices of linear layers in bitsandbytes' NF4 with 8-bit scales; all else in its own dtype.
    Nf4,
}

impl HfFormat {
    /// The names of the formats that can be asked for.
    pub const NAMES: [&'static str; 5] = ["f32", "bf16", "f16", "fp8", "nf4"];

    /// Returns the format of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Float32, Self::BFloat16, Self::Float16, Self::Fp8, Self::Nf4];
        Self::NAMES.iter().zip(all).find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, format)| format)
    }

    /// Returns the format's name in a summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Float32 => "f32",
            Self::BFloat16 => "bf16",
            Self::Float16 => "f16",
            Self::Fp8 => "fp8",
            Self::Nf4 => "nf4",
        }
    }

    /// Returns the dtype that all numbers get; `None` if each tensor keeps its own.
    pub(super) fn dtype(self) -> Option<Kind> {
        match self {
            Self::Float32 => Some(Kind::Float),
            Self::BFloat16 => Some(Kind::BFloat16),
            Self::Float16 => Some(Kind::Half),
            Self::Own | Self::Fp8 | Self::Nf4 => None,
        }
    }

    /// Returns true for formats in which matrices have scales of their own.
    pub(super) fn is_quantised(self) -> bool {
        matches!(self, Self::Fp8 | Self::Nf4)
    }
}

/// Fails for models that transformers does not compute, or of which it does not quantise the linear layers.
pub(super) fn refuse(config: &Config, weights: &Weights, format: HfFormat) -> Result<()> {
    if config.is_own_family() {
        return Err(config
            .refuse(format!("only ft computes {}; transformers has no class for it", config.model_type))
            .hint("ft reads the directory as it is; ft export --to onnx writes ft_decoder for other programs"));
    }
    if weights.shape(SCORE).is_some() {
        return Err(config.refuse("this is a reward model: it scores answers and generates no text").hint(
            "ft export --to hf writes language models; a reward model's directory is read by transformers as it is",
        ));
    }
    let class = match (config.model_type.as_str(), format) {
        ("falcon", _) if format.is_quantised() => "FalconLinear",
        ("gpt2", HfFormat::Fp8) => "Conv1D",
        _ => return Ok(()),
    };
    let why =
        format!("transformers computes its linear layers by {class}, which it does not have in {}", format.name());
    Err(Error::user(format!("{}: {}: {why}", config.file().display(), config.model_type))
        .hint("choose --type f32, bf16 or f16; ft export --to gguf --type q8_0 is smaller"))
}
