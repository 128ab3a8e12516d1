//! Prefix tuning (Li and Liang 2021, arXiv 2101.00190): trained keys and values before those of every sequence, in every
//! layer.

use super::encoder::{Activation, EncoderShape};
use super::{VirtualContext, VirtualKind};
use crate::error::Result;
use crate::nn::{ModelSizes, RegisterParam, VirtualPlace, VirtualTokens, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::Tensor;
use tch::kind::FLOAT_CPU;

/// Prefix tuning: trained keys and values before those of every sequence, in every layer. They take positions, and are no
/// text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixTuningSpec {
    /// Number of virtual tokens before every sequence.
    #[schemars(range(min = 1, max = 65536))] // MAX_VIRTUAL_TOKENS
    pub virtual_tokens: i64,
    /// Train the keys and values through two linear layers with tanh between them, which the paper found more stable.
    /// The result holds the computed keys and values.
    pub projection: bool,
    /// Width inside the encoder of `projection`; by default that of a layer's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub encoder_hidden_size: Option<i64>,
    /// What keys and values start as.
    pub init: PrefixInit,
    /// Folder of an adapter to continue training from, with the same base and number of virtual tokens, and without
    /// `projection`. It is then also the reference model of methods that need one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// What follows from a file or from the base.
    #[serde(skip)]
    pub context: VirtualContext,
}

/// What keys and values start as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrefixInit {
    /// Normal with standard deviation 1, as in PEFT; with `projection` the encoder of random vectors.
    #[default]
    Random,
    /// Zero: virtual tokens then only take a share of the attention.
    Zero,
}

impl Default for PrefixTuningSpec {
    fn default() -> Self {
        Self {
            virtual_tokens: 20,
            projection: false,
            encoder_hidden_size: None,
            init: PrefixInit::Random,
            from: None,
            context: VirtualContext::default(),
        }
    }
}

impl VirtualKind for PrefixTuningSpec {
    const NAME: &'static str = "prefix_tuning";
    const TITLE: &'static str = "prefix tuning";
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const PLACE: VirtualPlace = VirtualPlace::KeysAndValues;

    fn count(&self) -> i64 {
        self.virtual_tokens
    }

    fn continues_from(&self) -> Option<&Path> {
        self.from.as_deref()
    }

    fn context(&self) -> &VirtualContext {
        &self.context
    }

    fn context_mut(&mut self) -> &mut VirtualContext {
        &mut self.context
    }

    fn has_encoder(&self) -> bool {
        self.projection
    }

    fn own_config(&self) -> Value {
        json!({
            "encoder_hidden_size": self.encoder_hidden_size.or(self.context.declared.map(|sizes| sizes.width)),
            "prefix_projection": self.projection,
        })
    }

    fn attach(&self, model: ModelSizes, _table: &Weight, add: &mut RegisterParam) -> Result<VirtualTokens> {
        let (count, zero) = (self.virtual_tokens, self.init == PrefixInit::Zero);
        let all = model.numbers(Self::PLACE);
        if !self.projection {
            let shape = [count, all];
            let first = if zero { Tensor::zeros(shape, FLOAT_CPU) } else { Tensor::randn(shape, FLOAT_CPU) };
            return Ok(self.plain(first, add));
        }
        let width = model.kv_heads * model.head_dim;
        let inner = self.encoder_hidden_size.unwrap_or(width);
        let widths = &[width, inner, all];
        let shape = EncoderShape { count, widths, activation: Activation::Tanh, name: "transform", zero };
        Ok(VirtualTokens::new(count, Self::PLACE, shape.build(add)))
    }
}
