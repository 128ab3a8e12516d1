//! OLMo 2 and OLMo 3 (OLMo et al. 2025, arXiv 2501.00656): Llama's layers with norms after attention and MLP instead of before
//! them, and normalised queries and keys. OLMo 3 has windows in three of four layers.

use super::defaults::{alternate, fill};
use super::llama;
use crate::models::blocks::{AttentionDesign, Design, QkNorm, Wiring};
use crate::models::family::{Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["olmo2", "olmo3"],
    architectures: &["Olmo2ForCausalLM", "Olmo3ForCausalLM"],
    key_names: &[],
    foreign_keys: &["mlp_bias", "use_sliding_window", "max_window_layers"],
    defaults: |config| {
        fill(config, [("max_position_embeddings", json!(2048)), ("rms_norm_eps", json!(1e-5))]);
        if config["model_type"] == "olmo2" {
            config.remove("sliding_window");
            config.remove("layer_types");
            return;
        }
        fill(config, [("sliding_window", json!(4096))]);
        if !config.contains_key("rope_parameters") {
            // Only the layers without a window follow the file's base and scaling.
            fill(config, [("rope_theta", json!(500000.0)), ("rope_local_base_freq", json!(500000.0))]);
        }
        alternate(config, 4);
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(|c| {
        let llama = Design::llama(c)?;
        let attention = AttentionDesign { qk_norm: QkNorm::Whole, ..llama.attention };
        let wiring = Wiring {
            before_attention: None,
            after_attention: Some("post_attention_layernorm"),
            before_mlp: None,
            after_mlp: Some("post_feedforward_layernorm"),
            parallel: false,
        };
        Ok(Design { attention, wiring, ..llama })
    }),
};
