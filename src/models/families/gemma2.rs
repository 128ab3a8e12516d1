//! Gemma 2 (Rivière et al. 2024, arXiv 2408.00118): norms before and after attention and MLP, capped scores and logits, a
//! window in every second layer.

use super::defaults::{alternate, fill};
use super::{gemma, llama};
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, Wiring};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::LogitChange;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["gemma2"],
    architectures: &["Gemma2ForCausalLM"],
    key_names: &[("hidden_act", "hidden_activation")],
    foreign_keys: &["use_sliding_window", "max_window_layers"],
    defaults: |config| {
        gemma::defaults(config);
        fill(
            config,
            [
                ("num_key_value_heads", json!(4)),
                ("hidden_activation", json!("gelu_pytorch_tanh")),
                ("query_pre_attn_scalar", json!(256)),
                ("sliding_window", json!(4096)),
                ("attn_logit_softcapping", json!(50.0)),
                ("final_logit_softcapping", json!(30.0)),
            ],
        );
        alternate(config, 2);
    },
    extra_keys: &[
        "num_key_value_heads",
        "rope_theta",
        "attention_bias",
        "head_dim",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Returns the layers of Gemma 2, from which those of Gemma 3 differ.
pub(super) fn design(c: &Config) -> Result<Design> {
    let gemma = gemma::design(c)?;
    let number = |key: &str| c.settings.get(key).and_then(Value::as_f64);
    let attention = AttentionDesign {
        scale: c.number("query_pre_attn_scalar", 256.0).powf(-0.5),
        softcap: number("attn_logit_softcapping"),
        ..gemma.attention
    };
    let wiring = Wiring {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
        parallel: false,
    };
    let logits = LogitChange { scale: 1.0, softcap: number("final_logit_softcapping") };
    Ok(Design { attention, wiring, logits, ..gemma })
}
