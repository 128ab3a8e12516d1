//! Qwen3-MoE: Qwen3's layers with experts in place of the MLP (Yang et al. 2025, arXiv 2505.09388).

use super::defaults::fill;
use super::llama;
use crate::models::blocks::{AttentionDesign, Design, QkNorm};
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["qwen3_moe"],
    architectures: &["Qwen3MoeForCausalLM"],
    key_names: &[],
    foreign_keys: &["mlp_bias", "shared_expert_intermediate_size"],
    defaults: |config| {
        // transformers 5 writes the number of experts under the name that it has in Mixtral.
        if let Some(count) = config.get("num_local_experts").filter(|count| !count.is_null()).cloned() {
            fill(config, [("num_experts", count)]);
        }
        fill(
            config,
            [
                ("use_sliding_window", json!(false)),
                ("intermediate_size", json!(6144)),
                ("moe_intermediate_size", json!(768)),
                ("num_experts", json!(128)),
                ("num_experts_per_tok", json!(8)),
                ("num_key_value_heads", json!(4)),
                ("max_position_embeddings", json!(32768)),
                ("sliding_window", json!(4096)),
            ],
        );
    },
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
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { qk_norm: QkNorm::PerHead, ..llama.attention };
        Ok(Design { attention, ..llama })
    }),
};
