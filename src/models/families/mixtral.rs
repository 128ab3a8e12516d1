//! Mixtral: Mistral's layers with experts in place of the MLP (Jiang et al. 2024, arXiv 2401.04088).

use super::feed_forward::ExpertNames;
use super::llama::{self, LlamaExtension, LlamaVariant};
use crate::models::family::Family;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["mixtral"],
    architectures: &["MixtralForCausalLM"],
    key_names: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    defaults,
    extra_keys: &[
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "num_key_value_heads",
        "rope_theta",
        "router_aux_loss_coef",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    build: |c, b| {
        let plain = LlamaVariant { qkv_bias: false, output_bias: false, mlp_bias: false, qk_norm: false };
        llama::build_extended(c, b, plain, LlamaExtension { experts: NAMES, ..LlamaExtension::NONE })
    },
};

const NAMES: ExpertNames = ExpertNames { module: "block_sparse_moe", layers: ["w1", "w3", "w2"] };

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    config.entry("num_local_experts").or_insert(json!(8));
    config.entry("num_experts_per_tok").or_insert(json!(2));
    config.entry("num_key_value_heads").or_insert(json!(8));
    config.entry("max_position_embeddings").or_insert(json!(131072));
    config.entry("rms_norm_eps").or_insert(json!(1e-5));
    config.entry("rope_theta").or_insert(json!(1e6));
    // The weights of a token's experts always add up to 1.
    config.insert("norm_topk_prob".into(), json!(true));
}
