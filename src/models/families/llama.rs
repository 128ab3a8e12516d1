//! Llama and models with the same layers: SmolLM, Llama 2 and 3, Falcon 3 (Touvron et al. 2023, arXiv 2302.13971).

use super::defaults::{WINDOWS, fill};
use crate::models::blocks::Design;
use crate::models::family::{Family, FamilyLayers};
use crate::nn::ParamMapping;
use serde_json::json;

pub(super) const FAMILY: Family = Family {
    names: &["llama"],
    architectures: &["LlamaForCausalLM"],
    key_names: &[],
    foreign_keys: WINDOWS,
    defaults: |config| fill(config, [("max_position_embeddings", json!(2048))]),
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "head_dim", "mlp_bias"],
    embedding: "model.embed_tokens.weight",
    map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(Design::llama),
};

/// Keeps a checkpoint's names, and leaves out the rotary tables that old checkpoints contain.
pub(super) fn map_param(name: &str) -> Option<ParamMapping> {
    (!name.ends_with("rotary_emb.inv_freq")).then(|| ParamMapping { name: name.into(), transposed: false })
}
