//! Qwen3-MoE: Qwen3's layers with experts in place of the MLP (Yang et al. 2025, arXiv 2505.09388).

use super::llama::{self, LlamaVariant};
use crate::models::family::Family;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["qwen3_moe"],
    architectures: &["Qwen3MoeForCausalLM"],
    key_names: &[],
    defaults,
    extra_keys: &[
        "attention_bias",
        "decoder_sparse_step",
        "head_dim",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build: |c, b| {
        let bias = c.attention_bias;
        let normed = LlamaVariant { qkv_bias: bias, output_bias: bias, mlp_bias: false, qk_norm: true };
        llama::build(c, b, normed)
    },
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    // transformers 5 writes the number of experts under the name that it has in Mixtral.
    if let Some(count) = config.get("num_local_experts").filter(|count| !count.is_null()).cloned() {
        config.entry("num_experts").or_insert(count);
    }
    config.entry("use_sliding_window").or_insert(json!(false));
    for (key, value) in [
        ("intermediate_size", 6144),
        ("moe_intermediate_size", 768),
        ("num_experts", 128),
        ("num_experts_per_tok", 8),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 32768),
        ("sliding_window", 4096),
    ] {
        config.entry(key).or_insert(json!(value));
    }
}
