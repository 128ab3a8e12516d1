//! GPT-NeoX and Pythia (Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373): parallel layers with
//! layer norms, one product for queries, keys and values head by head, rotary embedding of a part of each head.

use super::defaults::{WINDOWS_AND_HEAD_SIZE, fill};
use crate::error::Result;
use crate::models::blocks::{
    AttentionDesign, Design, FeedForwardDesign, FeedForwardLayers, Names, NormKind, Projections, Wiring,
};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::ParamMapping;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM"],
    key_names: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("partial_rotary_factor", "rotary_pct"),
        ("rope_theta", "rotary_emb_base"),
        ("num_key_value_heads", "num_attention_heads"),
    ],
    foreign_keys: WINDOWS_AND_HEAD_SIZE,
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(2048)),
                ("layer_norm_eps", json!(1e-5)),
                ("hidden_act", json!("gelu")),
                ("attention_bias", json!(true)),
                ("rotary_pct", json!(0.25)),
                ("use_parallel_residual", json!(true)),
            ],
        );
    },
    extra_keys: &["rope_theta", "partial_rotary_factor", "attention_bias", "use_parallel_residual"],
    embedding: "gpt_neox.embed_in.weight",
    map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Maps a checkpoint's name to the name in transformers 5, which calls the head as other families do. Causal masks and
/// rotary tables, which old checkpoints contain, are left out.
fn map_param(name: &str) -> Option<ParamMapping> {
    let constants = [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"];
    let name = if name == "embed_out.weight" { "lm_head.weight" } else { name };
    (!constants.iter().any(|end| name.ends_with(end))).then(|| ParamMapping { name: name.into(), transposed: false })
}

fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    let names = Names {
        trunk: "gpt_neox",
        embedding: "embed_in",
        embedding_norm: None,
        layers: "layers",
        final_norm: "final_layer_norm",
    };
    let attention = AttentionDesign {
        module: "attention",
        projections: Projections::ByGroup("query_key_value"),
        output: "dense",
        ..llama.attention
    };
    let layers = FeedForwardLayers::Plain(["dense_h_to_4h", "dense_4h_to_h"]);
    let feed_forward = FeedForwardDesign { layers, bias: true, ..llama.feed_forward };
    let wiring = Wiring { parallel: c.flag("use_parallel_residual", true), ..llama.wiring };
    Ok(Design { names, norm: NormKind::Layer { bias: true }, wiring, attention, feed_forward, ..llama })
}
