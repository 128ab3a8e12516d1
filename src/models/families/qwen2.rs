//! Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values (Yang et al. 2024, arXiv 2407.10671).

use super::defaults::fill;
use super::llama;
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Family, FamilyLayers};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["qwen2"],
    architectures: &["Qwen2ForCausalLM"],
    key_names: &[],
    foreign_keys: &["attention_bias", "mlp_bias"],
    defaults,
    extra_keys: &["num_key_value_heads", "rope_theta"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { qkv_bias: true, ..llama.attention };
        Ok(Design { attention, ..llama })
    }),
};

/// Fills in transformers' defaults for missing keys.
pub(super) fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [
            ("use_sliding_window", json!(false)),
            ("sliding_window", json!(4096)),
            ("max_window_layers", json!(28)),
            ("num_key_value_heads", json!(32)),
            ("max_position_embeddings", json!(32768)),
        ],
    );
}
