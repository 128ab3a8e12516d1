//! Mistral, Mistral Nemo and Ministral: Llama's layers with an independent head size and windows (Jiang et al. 2023, arXiv
//! 2310.06825).

use super::defaults::{fill, fill_null};
use super::llama;
use crate::models::blocks::Design;
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["mistral", "ministral"],
    architectures: &["MistralForCausalLM", "MinistralForCausalLM"],
    key_names: &[],
    foreign_keys: &["attention_bias", "mlp_bias"],
    defaults: |config| {
        fill(config, [("sliding_window", json!(4096)), ("max_position_embeddings", json!(131072))]);
        fill_null(config, [("num_key_value_heads", json!(8))]);
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "head_dim", "sliding_window"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(Design::llama),
};
