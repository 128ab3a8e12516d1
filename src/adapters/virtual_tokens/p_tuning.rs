//! P-tuning (Liu et al. 2021, arXiv 2103.10385): virtual tokens before the embedded tokens, trained through a network of
//! three linear layers. Of the paper's encoders this is the one without an LSTM.

use super::encoder::{Activation, EncoderShape};
use super::{VirtualContext, VirtualKind};
use crate::error::Result;
use crate::nn::{ModelSizes, RegisterParam, VirtualPlace, VirtualTokens, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// P-tuning: as prompt tuning, but the vectors are computed from trained ones by three linear layers with ReLU between
/// them, which are trained too. The result holds the computed vectors, so it works as one of prompt tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PTuningSpec {
    /// Number of virtual tokens before every sequence.
    #[schemars(range(min = 1, max = 65536))] // MAX_VIRTUAL_TOKENS
    pub virtual_tokens: i64,
    /// Width inside the encoder; by default the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub encoder_hidden_size: Option<i64>,
    /// What follows from a file or from the base.
    #[serde(skip)]
    pub context: VirtualContext,
}

impl Default for PTuningSpec {
    fn default() -> Self {
        Self { virtual_tokens: 20, encoder_hidden_size: None, context: VirtualContext::default() }
    }
}

impl VirtualKind for PTuningSpec {
    const NAME: &'static str = "p_tuning";
    const TITLE: &'static str = "P-tuning";
    const PEFT_TYPE: &'static str = "P_TUNING";
    const PLACE: VirtualPlace = VirtualPlace::Input;

    fn count(&self) -> i64 {
        self.virtual_tokens
    }

    /// Returns `None`: the encoder is in no file.
    fn continues_from(&self) -> Option<&Path> {
        None
    }

    fn context(&self) -> &VirtualContext {
        &self.context
    }

    fn context_mut(&mut self) -> &mut VirtualContext {
        &mut self.context
    }

    fn has_encoder(&self) -> bool {
        true
    }

    fn own_config(&self) -> Value {
        json!({
            "encoder_dropout": 0.0,
            "encoder_hidden_size": self.encoder_hidden_size.or(self.context.declared.map(|sizes| sizes.width)),
            "encoder_num_layers": 2,
            "encoder_reparameterization_type": "MLP",
        })
    }

    fn attach(&self, model: ModelSizes, _table: &Weight, add: &mut RegisterParam) -> Result<VirtualTokens> {
        let inner = self.encoder_hidden_size.unwrap_or(model.width);
        let shape = EncoderShape {
            count: self.virtual_tokens,
            widths: &[model.width, inner, inner, model.width],
            activation: Activation::Relu,
            name: "mlp_head",
            zero: false,
        };
        Ok(VirtualTokens::new(self.virtual_tokens, Self::PLACE, shape.build(add)))
    }
}
