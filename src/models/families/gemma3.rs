//! Gemma 3, its language model (Kamath et al. 2025, arXiv 2503.19786): Gemma 2's layers with normalised queries and keys,
//! and another base of rotary embedding in the layers with a window.

use super::defaults::{alternate, fill};
use super::{gemma, gemma2, llama};
use crate::models::blocks::{AttentionDesign, Design, QkNorm};
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["gemma3_text"],
    architectures: &["Gemma3ForCausalLM"],
    key_names: &[("hidden_act", "hidden_activation")],
    // transformers reads a bound of scores and does not use it.
    foreign_keys: &["use_sliding_window", "max_window_layers", "attn_logit_softcapping"],
    defaults: |config| {
        fill(config, [("max_position_embeddings", json!(131072))]);
        gemma::defaults(config);
        fill(
            config,
            [
                ("num_key_value_heads", json!(4)),
                ("hidden_activation", json!("gelu_pytorch_tanh")),
                ("query_pre_attn_scalar", json!(256)),
                ("sliding_window", json!(4096)),
            ],
        );
        if !config.contains_key("rope_parameters") {
            fill(config, [("rope_theta", json!(1e6)), ("rope_local_base_freq", json!(1e4))]);
        }
        alternate(config, 6);
    },
    extra_keys: &[
        "num_key_value_heads",
        "rope_theta",
        "rope_local_base_freq",
        "attention_bias",
        "head_dim",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let gemma2 = gemma2::design(c)?;
        let attention = AttentionDesign { qk_norm: QkNorm::PerHead, ..gemma2.attention };
        Ok(Design { attention, ..gemma2 })
    }),
};
