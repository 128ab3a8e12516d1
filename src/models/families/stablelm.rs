//! StableLM (Bellagente et al. 2024, arXiv 2402.17834): Llama's layers with layer norms, and rotary embedding of a quarter of
//! each head.

use super::defaults::{WINDOWS_AND_HEAD_SIZE, fill};
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, NormKind, Wiring};
use crate::models::family::{Config, Family, FamilyLayers};
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["stablelm"],
    architectures: &["StableLmForCausalLM"],
    key_names: &[("rms_norm_eps", "layer_norm_eps"), ("attention_bias", "use_qkv_bias")],
    foreign_keys: WINDOWS_AND_HEAD_SIZE,
    defaults: |config| {
        fill(
            config,
            [
                ("max_position_embeddings", json!(4096)),
                ("layer_norm_eps", json!(1e-5)),
                ("num_key_value_heads", json!(32)),
                ("partial_rotary_factor", json!(0.25)),
                ("use_qkv_bias", json!(false)),
            ],
        );
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "partial_rotary_factor", "attention_bias"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

fn design(c: &Config) -> Result<Design> {
    if c.flag("qk_layernorm", false) {
        return Err(c.refuse("`qk_layernorm` is true: norms of queries and keys are not supported in this family"));
    }
    let llama = Design::llama(c)?;
    let attention = AttentionDesign { output_bias: false, ..llama.attention };
    let wiring = match c.flag("use_parallel_residual", false) {
        true => Wiring { before_mlp: None, parallel: true, ..llama.wiring },
        false => llama.wiring,
    };
    Ok(Design { norm: NormKind::Layer { bias: true }, attention, wiring, ..llama })
}
