//! BLOOM (Workshop et al. 2022, arXiv 2211.05100): layer norms, also of the embedded tokens, one product for queries, keys and
//! values head by head, ALiBi in the place of positions.

use super::defaults::{CHOICES, fill};
use crate::error::Result;
use crate::models::blocks::{
    Activation, AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Names, NormKind, Projections,
};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::{Alibi, ParamMapping};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["bloom"],
    architectures: &["BloomForCausalLM"],
    key_names: &[
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("num_key_value_heads", "n_head"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    foreign_keys: CHOICES,
    defaults,
    extra_keys: &[],
    embedding: "transformer.word_embeddings.weight",
    map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Fills in transformers' defaults for missing keys. The MLP is always four times as wide as the model, and always uses GELU.
fn defaults(config: &mut Map<String, Value>) {
    // Files of the Hub have the names that transformers gives the same keys in other families.
    for (usual, own) in
        [("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"), ("n_embed", "hidden_size")]
    {
        if let Some(value) = config.get(usual).cloned() {
            config.entry(own).or_insert(value);
        }
    }
    fill(config, [("layer_norm_epsilon", json!(1e-5)), ("tie_word_embeddings", json!(true))]);
    if let Some(width) = config.get("hidden_size").and_then(Value::as_i64) {
        config.insert("intermediate_size".into(), json!(4 * width.clamp(0, 1 << 22)));
    }
}

/// Maps a checkpoint's name to the name in transformers: files of the Hub lack the prefix `transformer.`.
fn map_param(name: &str) -> Option<ParamMapping> {
    let whole = ["transformer.", "lm_head.", "score."].iter().any(|part| name.starts_with(part));
    let name = if whole { name.to_string() } else { format!("transformer.{name}") };
    Some(ParamMapping { name, transposed: false })
}

fn design(c: &Config) -> Result<Design> {
    if c.flag("apply_residual_connection_post_layernorm", false) {
        return Err(c.refuse("`apply_residual_connection_post_layernorm` is true, which is not supported"));
    }
    let llama = Design::llama(c)?;
    let names = Names {
        trunk: "transformer",
        embedding: "word_embeddings",
        embedding_norm: Some("word_embeddings_layernorm"),
        layers: "h",
        final_norm: "ln_f",
    };
    let attention = AttentionDesign {
        module: "self_attention",
        projections: Projections::ByGroup("query_key_value"),
        qkv_bias: true,
        output: "dense",
        output_bias: true,
        alibi: Some(Alibi { factor: 1.0, rounded: false }),
        rotates: vec![false; c.num_hidden_layers as usize],
        ..llama.attention
    };
    let layers = FeedForwardLayers::Plain(["dense_h_to_4h", "dense_4h_to_h"]);
    let feed_forward = FeedForwardDesign { layers, bias: true, activation: Activation::GeluTanh, ..llama.feed_forward };
    Ok(Design { names, norm: NormKind::Layer { bias: true }, attention, feed_forward, ..llama })
}
