//! OLMoE: llama's layers with experts and with norms over all queries and all keys of a token (Muennighoff et al. 2024,
//! arXiv 2409.02060).

use super::defaults::fill;
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, QkNorm};
use crate::models::family::{Config, Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["olmoe"],
    architectures: &["OlmoeForCausalLM"],
    key_names: &[("moe_intermediate_size", "intermediate_size")],
    foreign_keys: &[
        "decoder_sparse_step",
        "head_dim",
        "layer_types",
        "max_window_layers",
        "mlp_only_layers",
        "shared_expert_intermediate_size",
        "sliding_window",
        "use_sliding_window",
    ],
    defaults: |config| {
        fill(
            config,
            [
                ("num_experts", json!(64)),
                ("num_experts_per_tok", json!(8)),
                ("max_position_embeddings", json!(4096)),
                ("rms_norm_eps", json!(1e-5)),
                ("router_aux_loss_coef", json!(0.01)),
            ],
        );
    },
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
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let (llama, clip_qkv) = (Design::llama(c)?, clip_qkv(c)?);
        let attention = AttentionDesign { qk_norm: QkNorm::Whole, clip_qkv, ..llama.attention };
        Ok(Design { attention, ..llama })
    }),
};

fn clip_qkv(c: &Config) -> Result<Option<f64>> {
    let Some(limit) = c.settings.get("clip_qkv").filter(|v| !v.is_null()) else { return Ok(None) };
    limit.as_f64().filter(|limit| *limit > 0.0).map(Some).ok_or_else(|| {
        c.refuse(format!("`clip_qkv` must be a number above 0, found {limit}"))
            .hint("it limits queries, keys and values; null: no limit")
    })
}
