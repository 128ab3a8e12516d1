//! Qwen1.5-MoE and Qwen2-MoE: Qwen2's layers with experts and an expert that computes every token (Yang et al. 2024,
//! arXiv 2407.10671).

use super::llama::{self, LlamaVariant};
use super::qwen2;
use crate::models::family::Family;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["qwen2_moe"],
    architectures: &["Qwen2MoeForCausalLM"],
    key_names: &[],
    defaults,
    extra_keys: &[
        "decoder_sparse_step",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
        "shared_expert_intermediate_size",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build: |c, b| {
        let qkv_bias = c.raw.get("qkv_bias").and_then(Value::as_bool).unwrap_or(true);
        let biased = LlamaVariant { qkv_bias, output_bias: false, mlp_bias: false, qk_norm: false };
        llama::build(c, b, biased)
    },
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    config.entry("num_key_value_heads").or_insert(json!(16));
    qwen2::defaults(config);
    for (key, value) in [
        ("intermediate_size", 5632),
        ("moe_intermediate_size", 1408),
        ("shared_expert_intermediate_size", 5632),
        ("num_experts", 60),
        ("num_experts_per_tok", 4),
    ] {
        config.entry(key).or_insert(json!(value));
    }
}
