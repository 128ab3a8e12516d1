//! OLMoE: llama's layers with experts and with norms over all queries and all keys of a token (Muennighoff et al. 2024,
//! arXiv 2409.02060).

use super::llama::{self, LlamaExtension, LlamaVariant};
use crate::error::{Error, Result};
use crate::models::family::{Config, Decoder, Family};
use crate::nn::ModelBuilder;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["olmoe"],
    architectures: &["OlmoeForCausalLM"],
    key_names: &[("moe_intermediate_size", "intermediate_size")],
    defaults,
    extra_keys: &[
        "attention_bias",
        "norm_topk_prob",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build,
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    for (key, value) in [("num_experts", 64), ("num_experts_per_tok", 8), ("max_position_embeddings", 4096)] {
        config.entry(key).or_insert(json!(value));
    }
    config.entry("rms_norm_eps").or_insert(json!(1e-5));
    config.entry("router_aux_loss_coef").or_insert(json!(0.01));
}

fn build(c: &Config, b: &ModelBuilder) -> Result<Box<dyn Decoder>> {
    let clip_qkv = match c.raw.get("clip_qkv").filter(|v| !v.is_null()) {
        None => None,
        Some(limit) => Some(limit.as_f64().filter(|limit| *limit > 0.0).ok_or_else(|| {
            Error::user(format!("{}: `clip_qkv` must be a number above 0, found {limit}", c.file().display()))
                .hint("it limits queries, keys and values; null: no limit")
        })?),
    };
    let bias = c.attention_bias;
    let normed = LlamaVariant { qkv_bias: bias, output_bias: bias, mlp_bias: false, qk_norm: true };
    llama::build_extended(c, b, normed, LlamaExtension { whole_qk_norm: true, clip_qkv, ..LlamaExtension::NONE })
}
