//! MPT (MosaicML NLP Team 2023): layer norms without shift, one product for queries, keys and values, no biases, ALiBi in the
//! place of positions.

use super::defaults::{CHOICES, fill};
use crate::error::Result;
use crate::models::blocks::{
    Activation, AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Names, NormKind, Projections, Wiring,
};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::{Alibi, ParamMapping};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["mpt"],
    architectures: &["MptForCausalLM"],
    key_names: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("num_key_value_heads", "n_heads"),
        ("max_position_embeddings", "max_seq_len"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    foreign_keys: CHOICES,
    defaults,
    extra_keys: &[],
    embedding: "transformer.wte.weight",
    map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Fills in transformers' defaults for missing keys. The MLP is always four times as wide as the model.
fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [("layer_norm_epsilon", json!(1e-5)), ("max_seq_len", json!(2048)), ("tie_word_embeddings", json!(true))],
    );
    if let Some(width) = config.get("d_model").and_then(Value::as_i64) {
        config.insert("intermediate_size".into(), json!(4 * width.clamp(0, 1 << 22)));
    }
}

fn design(c: &Config) -> Result<Design> {
    let of_attention = c.settings.get("attn_config").cloned().unwrap_or_default();
    let asked = |key: &str| of_attention.get(key).filter(|v| !v.is_null() && **v != json!(false));
    for key in ["qk_ln", "prefix_lm", "attn_uses_sequence_id"] {
        if asked(key).is_some() {
            return Err(c.refuse(format!("`attn_config.{key}` is not supported")));
        }
    }
    let number = |key: &str| asked(key).and_then(Value::as_f64);
    if let Some(other) = number("alibi_bias_max").filter(|most| *most != 8.0) {
        return Err(c
            .refuse(format!("`attn_config.alibi_bias_max` is {other}"))
            .hint("only 8 is supported, with which transformers computes every MPT, whatever the file says"));
    }
    let llama = Design::llama(c)?;
    let names =
        Names { trunk: "transformer", embedding: "wte", embedding_norm: None, layers: "blocks", final_norm: "norm_f" };
    let attention = AttentionDesign {
        module: "attn",
        projections: Projections::ByKind("Wqkv"),
        output: "out_proj",
        scale: number("softmax_scale").unwrap_or(llama.attention.scale),
        clip_qkv: number("clip_qkv"),
        alibi: Some(Alibi { factor: 1.0, rounded: false }),
        rotates: vec![false; c.num_hidden_layers as usize],
        ..llama.attention
    };
    let layers = FeedForwardLayers::Plain(["up_proj", "down_proj"]);
    let feed_forward = FeedForwardDesign { module: "ffn", layers, bias: false, activation: Activation::Gelu };
    let wiring = Wiring { before_attention: Some("norm_1"), before_mlp: Some("norm_2"), ..llama.wiring };
    Ok(Design { names, norm: NormKind::Layer { bias: false }, wiring, attention, feed_forward, ..llama })
}
