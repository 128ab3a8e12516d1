//! P-tuning (Liu et al. 2021, arXiv 2103.10385): virtual tokens before the embedded tokens, trained through a network of
//! three linear layers. Of the paper's encoders this is the one without an LSTM.

use super::encoder::{Activation, EncoderShape};
use super::{VirtualKind, VirtualSettings};
use crate::error::Result;
use crate::nn::{ModelSizes, RegisterParam, VirtualPlace, VirtualTokens, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// P-tuning: as prompt tuning, but the vectors are computed from trained ones by three linear layers with ReLU between
/// them, which are trained too. The result holds the computed vectors, so it works as one of prompt tuning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct PTuningSpec {
    /// How many virtual tokens there are.
    #[serde(flatten)]
    pub settings: VirtualSettings,
    /// Width inside the encoder; by default the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub encoder_hidden_size: Option<i64>,
}

impl VirtualKind for PTuningSpec {
    const SECTION: &'static str = "p_tuning";
    const TITLE: &'static str = "P-tuning";
    const PEFT_TYPE: &'static str = "P_TUNING";
    const PLACE: VirtualPlace = VirtualPlace::Input;

    fn settings(&self) -> &VirtualSettings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut VirtualSettings {
        &mut self.settings
    }

    fn has_encoder(&self) -> bool {
        true
    }

    fn own_config(&self) -> Value {
        json!({
            "encoder_dropout": 0.0,
            "encoder_hidden_size": self.encoder_hidden_size.or(self.settings.declared.map(|sizes| sizes.width)),
            "encoder_num_layers": 2,
            "encoder_reparameterization_type": "MLP",
        })
    }

    fn attach(&self, model: ModelSizes, _table: &Weight, add: &mut RegisterParam) -> Result<VirtualTokens> {
        let inner = self.encoder_hidden_size.unwrap_or(model.width);
        let shape = EncoderShape {
            count: self.settings.virtual_tokens,
            widths: &[model.width, inner, inner, model.width],
            activation: Activation::Relu,
            name: "mlp_head",
            zero: false,
        };
        Ok(VirtualTokens::new(self.settings.virtual_tokens, Self::PLACE, shape.build(add)))
    }
}
