//! Qwen1.5-MoE and Qwen2-MoE: Qwen2's layers with experts and an expert that computes every token (Yang et al. 2024,
//! arXiv 2407.10671).

use super::defaults::fill;
use super::{llama, qwen2};
use crate::models::blocks::{AttentionDesign, Design};
use crate::models::family::{Family, FamilyLayers};
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["qwen2_moe"],
    architectures: &["Qwen2MoeForCausalLM"],
    key_names: &[],
    foreign_keys: &["attention_bias", "mlp_bias"],
    defaults: |config| {
        fill(
            config,
            [
                ("num_key_value_heads", json!(16)),
                ("intermediate_size", json!(5632)),
                ("moe_intermediate_size", json!(1408)),
                ("shared_expert_intermediate_size", json!(5632)),
                ("num_experts", json!(60)),
                ("num_experts_per_tok", json!(4)),
            ],
        );
        qwen2::defaults(config);
    },
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
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let qkv_bias = c.settings.get("qkv_bias").and_then(Value::as_bool).unwrap_or(true);
        Ok(Design { attention: AttentionDesign { qkv_bias, ..llama.attention }, ..llama })
    }),
};
