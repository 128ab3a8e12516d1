//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Abdin et al. 2024, arXiv 2404.14219): Llama's layers with one product for queries,
//! keys and values, and one for gate and up; LongRoPE.

use super::defaults::fill;
use super::llama;
use crate::models::blocks::{AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Projections};
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["phi3"],
    architectures: &["Phi3ForCausalLM"],
    key_names: &[],
    foreign_keys: &["attention_bias", "mlp_bias", "use_sliding_window", "max_window_layers", "layer_types"],
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(4096)),
                ("original_max_position_embeddings", json!(4096)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "original_max_position_embeddings", "sliding_window"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { projections: Projections::ByKind("qkv_proj"), ..llama.attention };
        let feed_forward = FeedForwardDesign { layers: FeedForwardLayers::FusedGate, ..llama.feed_forward };
        Ok(Design { attention, feed_forward, ..llama })
    }),
};
