//! Qwen3: Llama's layers with normalised queries and keys and an independent head size (Yang et al. 2025, arXiv
//! 2505.09388).

use super::{llama, qwen2};
use crate::models::family::Family;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["qwen3"],
    architectures: &["Qwen3ForCausalLM"],
    key_names: &[],
    defaults: |config| {
        qwen2::defaults(config);
        config.entry("head_dim").or_insert(json!(128));
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "head_dim"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build: |c, b| {
        let bias = c.attention_bias;
        llama::build(c, b, llama::LlamaVariant { qkv_bias: bias, output_bias: bias, mlp_bias: false, qk_norm: true })
    },
};
