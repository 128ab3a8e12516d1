//! Command R and Command R7B (Cohere, 2024; arXiv 2504.00698): attention and MLP read one layer norm without shift, pairs of
//! neighbours are rotated, logits have a factor. Cohere 2 has windows in three of four layers; only these know positions.

use super::defaults::{WINDOWS, alternate, fill};
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, NormKind, QkNorm, Wiring};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::LogitChange;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["cohere", "cohere2"],
    architectures: &["CohereForCausalLM", "Cohere2ForCausalLM"],
    key_names: &[("rms_norm_eps", "layer_norm_eps")],
    foreign_keys: &["mlp_bias", "use_sliding_window", "max_window_layers"],
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(8192)),
                ("layer_norm_eps", json!(1e-5)),
                ("logit_scale", json!(0.0625)),
                ("tie_word_embeddings", json!(true)),
            ],
        );
        if config["model_type"] == "cohere2" {
            fill(config, [("sliding_window", json!(4096))]);
            return alternate(config, 4);
        }
        WINDOWS.iter().for_each(|key| drop(config.remove(*key)));
        if !config.contains_key("rope_parameters") {
            fill(config, [("rope_theta", json!(500000.0))]);
        }
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "logit_scale"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    let second = c.model_type == "cohere2";
    let normed = !second && c.flag("use_qk_norm", false);
    let rotates = c.windows.iter().map(|window| !second || window.is_some()).collect();
    let attention = AttentionDesign {
        qk_norm: if normed { QkNorm::EachHead } else { QkNorm::None },
        interleaved: true,
        rotates,
        ..llama.attention
    };
    let wiring = Wiring { before_mlp: None, parallel: true, ..llama.wiring };
    let logits = LogitChange { scale: c.number("logit_scale", 1.0), softcap: None };
    Ok(Design { norm: NormKind::Layer { bias: false }, wiring, attention, logits, ..llama })
}
