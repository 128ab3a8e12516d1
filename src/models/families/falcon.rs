//! Falcon (Almazrouei et al. 2023, arXiv 2311.16867): parallel layers with layer norms, one product for queries, keys and
//! values, few or one key head, rotary embedding or ALiBi. (Falcon 3 is a llama.)

use super::defaults::{WINDOWS_AND_HEAD_SIZE, fill, fill_null};
use crate::error::Result;
use crate::models::blocks::{
    AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Names, NormKind, Projections, Wiring,
};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::{Alibi, ParamMapping};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["falcon"],
    architectures: &["FalconForCausalLM"],
    key_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation"),
        ("intermediate_size", "ffn_hidden_size"),
        ("attention_bias", "bias"),
        ("num_key_value_heads", "num_kv_heads"),
    ],
    foreign_keys: WINDOWS_AND_HEAD_SIZE,
    defaults,
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "multi_query", "parallel_attn", "alibi", NEW],
    embedding: "transformer.word_embeddings.weight",
    map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Several key heads, and by default two norms in a parallel layer.
const NEW: &str = "new_decoder_architecture";

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [
            ("max_position_embeddings", json!(2048)),
            ("layer_norm_epsilon", json!(1e-5)),
            ("activation", json!("gelu")),
            ("bias", json!(false)),
            ("multi_query", json!(true)),
            ("parallel_attn", json!(true)),
            ("alibi", json!(false)),
            (NEW, json!(false)),
            ("tie_word_embeddings", json!(true)),
        ],
    );
    if let Some(width) = config.get("hidden_size").and_then(Value::as_i64) {
        fill_null(config, [("ffn_hidden_size", json!(4 * width.clamp(0, 1 << 22)))]);
    }
    if config[NEW] != true {
        let heads = if config["multi_query"] == true { json!(1) } else { config["num_attention_heads"].clone() };
        config.insert("num_kv_heads".into(), heads);
    }
}

fn design(c: &Config) -> Result<Design> {
    // transformers adds the bias before it scales the scores.
    let factor = (c.head_dim as f64).powf(-0.5);
    let alibi = c.flag("alibi", false).then_some(Alibi { factor, rounded: true });
    let llama = Design::llama(c)?;
    let names = Names {
        trunk: "transformer",
        embedding: "word_embeddings",
        embedding_norm: None,
        layers: "h",
        final_norm: "ln_f",
    };
    let attention = AttentionDesign {
        module: "self_attention",
        projections: Projections::ByGroup("query_key_value"),
        output: "dense",
        alibi,
        rotates: vec![alibi.is_none(); c.num_hidden_layers as usize],
        ..llama.attention
    };
    let layers = FeedForwardLayers::Plain(["dense_h_to_4h", "dense_4h_to_h"]);
    let feed_forward = FeedForwardDesign { layers, bias: c.attention_bias, ..llama.feed_forward };
    let (parallel, new) = (c.flag("parallel_attn", true), c.flag(NEW, false));
    let norms = c.number("num_ln_in_parallel_attn", if new { 2.0 } else { 1.0 });
    let wiring = match (parallel, norms) {
        (true, 2.0) => {
            Wiring { before_attention: Some("ln_attn"), before_mlp: Some("ln_mlp"), parallel, ..llama.wiring }
        }
        (true, _) => Wiring { before_mlp: None, parallel, ..llama.wiring },
        (false, _) if new => return Err(c.refuse(format!("`{NEW}` without `parallel_attn` is not supported"))),
        (false, _) => llama.wiring,
    };
    Ok(Design { names, norm: NormKind::Layer { bias: true }, wiring, attention, feed_forward, ..llama })
}
