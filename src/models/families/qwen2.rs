//! Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values (Yang et al. 2024, arXiv 2407.10671).

use super::llama;
use crate::models::family::Family;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["qwen2"],
    architectures: &["Qwen2ForCausalLM"],
    key_names: &[],
    defaults,
    extra_keys: &["num_key_value_heads", "rope_theta"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build: |c, b| {
        llama::build(c, b, llama::LlamaVariant { qkv_bias: true, output_bias: false, mlp_bias: false, qk_norm: false })
    },
};

/// Fills in transformers' defaults for missing keys.
pub(super) fn defaults(config: &mut Map<String, Value>) {
    config.entry("use_sliding_window").or_insert(json!(false));
    config.entry("sliding_window").or_insert(json!(4096));
    config.entry("max_window_layers").or_insert(json!(28));
    config.entry("num_key_value_heads").or_insert(json!(32));
    config.entry("max_position_embeddings").or_insert(json!(32768));
}
