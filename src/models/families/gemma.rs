//! Gemma (Mesnard et al. 2024, arXiv 2403.08295): Llama's layers with scaled embeddings, GELU in the MLP, and norms whose
//! weights are stored as differences from 1.

use super::defaults::{WINDOWS, fill};
use super::llama;
use crate::error::Result;
use crate::models::blocks::{Design, NormKind};
use crate::models::family::{Config, Family, FamilyLayers};
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["gemma"],
    architectures: &["GemmaForCausalLM"],
    key_names: &[],
    foreign_keys: WINDOWS,
    defaults: |config| {
        defaults(config);
        fill(config, [("hidden_act", json!("gelu_pytorch_tanh")), ("num_key_value_heads", json!(16))]);
        // The first files name the other form of GELU; the models were trained with this one.
        if config["hidden_act"] == "gelu" {
            config.insert("hidden_act".into(), json!("gelu_pytorch_tanh"));
        }
    },
    extra_keys: &["num_key_value_heads", "rope_theta", "attention_bias", "head_dim"],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Shared(design),
};

/// Fills in the defaults that all Gemmas have.
pub(super) fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [("head_dim", json!(256)), ("tie_word_embeddings", json!(true)), ("max_position_embeddings", json!(8192))],
    );
}

/// Returns the layers of the first Gemma. Fails for attention to later tokens.
pub(super) fn design(c: &Config) -> Result<Design> {
    if c.flag("use_bidirectional_attention", false) {
        return Err(c.refuse("`use_bidirectional_attention` is true: only decoder-only models are supported"));
    }
    let llama = Design::llama(c)?;
    Ok(Design { norm: NormKind::CentredRms, embedding_scale: (c.hidden_size as f64).sqrt(), ..llama })
}
