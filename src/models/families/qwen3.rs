//! Qwen3: Llama's layers with normalised queries and keys and an independent head size (Yang et al. 2025, arXiv
//! 2505.09388).

use super::defaults::fill;
use super::{llama, qwen2};
use crate::models::blocks::{AttentionDesign, Design, QkNorm};
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["qwen3"],
    architectures: &["Qwen3ForCausalLM"],
    key_names: &[],
    foreign_keys: &["mlp_bias"],
    defaults: |config| {
        qwen2::defaults(config);
        fill(config, [("head_dim", json!(128))]);
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "head_dim"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { qk_norm: QkNorm::PerHead, ..llama.attention };
        Ok(Design { attention, ..llama })
    }),
};
