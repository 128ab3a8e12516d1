//! Granite (IBM, 2024): Llama's layers with factors on embeddings, scores, residual additions and logits.

use super::defaults::{WINDOWS, fill};
use super::llama;
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Family, FamilyLayers};
use crate::nn::LogitChange;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["granite"],
    architectures: &["GraniteForCausalLM"],
    key_names: &[],
    foreign_keys: WINDOWS,
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(2048)),
                ("embedding_multiplier", json!(1.0)),
                ("attention_multiplier", json!(1.0)),
                ("residual_multiplier", json!(1.0)),
                ("logits_scaling", json!(1.0)),
            ],
        );
    },
    extra_keys: &[
        "num_key_value_heads",
        "rope_theta",
        "attention_bias",
        "mlp_bias",
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { scale: c.number("attention_multiplier", 1.0), ..llama.attention };
        let design = Design {
            attention,
            embedding_scale: c.number("embedding_multiplier", 1.0),
            residual_scale: c.number("residual_multiplier", 1.0),
            logits: LogitChange { scale: 1.0 / c.number("logits_scaling", 1.0), softcap: None },
            ..llama
        };
        Ok(design)
    }),
};
