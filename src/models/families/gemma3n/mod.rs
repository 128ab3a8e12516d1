//! Gemma 3n, its language model (Google DeepMind, 2025; the parts are named in its model card): several residual streams, of which
//! each layer computes one and corrects the others by it (AltUp: Baykal et al. 2023, arXiv 2301.13310); a second table of
//! tokens, of which each layer reads a part; a residual of low rank beside attention (LAuReL: Menghani et al. 2024, arXiv
//! 2411.07501); sparse gates; and last layers that read the keys and values of earlier ones.
//!
//! decoder: what is before and after the layers. layer: one layer. streams: AltUp.

mod decoder;
mod layer;
mod streams;

use super::defaults::{alternate, fill, fill_null};
use super::llama;
use crate::error::Result;
use crate::models::blocks::{AttentionDesign, Design, QkNorm};
use crate::models::family::{Config, Family, FamilyLayers};
use crate::nn::LogitChange;
use serde_json::{Map, Value, json};

pub(super) const FAMILY: Family = Family {
    names: &["gemma3n_text"],
    architectures: &["Gemma3nForCausalLM"],
    key_names: &[("hidden_act", "hidden_activation")],
    foreign_keys: &[
        "use_sliding_window",
        "max_window_layers",
        "sliding_window_pattern",
        "attn_logit_softcapping",
        "partial_rotary_factor",
        "mlp_bias",
    ],
    defaults,
    extra_keys: &[
        "num_key_value_heads",
        "attention_bias",
        "head_dim",
        "sliding_window",
        "layer_types",
        "final_logit_softcapping",
        "rope_parameters",
        "activation_sparsity_pattern",
        "altup_active_idx",
        "altup_coef_clip",
        "altup_correct_scale",
        "altup_num_inputs",
        "hidden_size_per_layer_input",
        "laurel_rank",
        "num_kv_shared_layers",
        "vocab_size_per_layer_input",
    ],
    embedding: "model.embed_tokens.weight",
    map_param: llama::map_param,
    stacked_experts: false,
    layers: FamilyLayers::Own(decoder::build),
};

/// Fills in transformers' defaults for missing keys.
fn defaults(config: &mut Map<String, Value>) {
    fill(
        config,
        [
            ("num_attention_heads", json!(8)),
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(256)),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("max_position_embeddings", json!(32768)),
            ("tie_word_embeddings", json!(true)),
            ("sliding_window", json!(512)),
            ("final_logit_softcapping", json!(30.0)),
            ("vocab_size_per_layer_input", json!(262144)),
            ("hidden_size_per_layer_input", json!(256)),
            ("altup_active_idx", json!(0)),
            ("altup_coef_clip", json!(120.0)),
            ("altup_correct_scale", json!(true)),
            ("altup_num_inputs", json!(4)),
            ("num_kv_shared_layers", json!(15)),
            ("laurel_rank", json!(64)),
        ],
    );
    let depth = config.get("num_hidden_layers").and_then(Value::as_u64).filter(|n| *n <= 10_000).unwrap_or(0);
    let sparse = |i: u64| if depth > 10 && i < 10 { 0.95 } else { 0.0 };
    let pattern: Vec<f64> = (0..depth).map(sparse).collect();
    fill_null(config, [("activation_sparsity_pattern", json!(pattern))]);
    alternate(config, 5);
    ropes(config);
}

/// Writes both rotary embeddings as transformers 5 does. A file of transformers 4 has them in three keys.
fn ropes(config: &mut Map<String, Value>) {
    let mut taken = |key: &str| config.remove(key).filter(|v| !v.is_null());
    let (theta, local, scaling) = (taken("rope_theta"), taken("rope_local_base_freq"), taken("rope_scaling"));
    let mut parameters = match taken("rope_parameters") {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let bases = [("full_attention", theta.unwrap_or(json!(1e6))), ("sliding_attention", local.unwrap_or(json!(1e4)))];
    for (kind, base) in bases {
        let section = parameters.entry(kind).or_insert_with(|| json!({}));
        let Some(section) = section.as_object_mut() else { continue };
        if let (Some(Value::Object(scaling)), "full_attention") = (&scaling, kind) {
            section.extend(scaling.clone());
        }
        section.entry("rope_theta").or_insert(base);
    }
    config.insert("rope_parameters".into(), Value::Object(parameters));
}

/// Sizes and settings that only this family has.
struct Settings {
    /// The number of residual streams.
    streams: i64,
    /// The stream that layers compute.
    active: i64,
    /// The largest magnitude of the coefficients' weights in training.
    clip: Option<f64>,
    /// The computed stream is scaled, feature by feature, before a layer's own input is gated by it.
    scales: bool,
    /// The width of the residual of low rank.
    rank: i64,
    /// P, the width of what each layer reads of the second table of tokens.
    input: i64,
    /// The rows of that table.
    vocabulary: i64,
}

impl Settings {
    /// Reads them. Fails for values that no model can have.
    fn read(c: &Config) -> Result<Self> {
        let whole = |key: &str, least: i64, most: i64| {
            let found = c.settings.get(key).cloned().unwrap_or_default();
            found.as_i64().filter(|n| (least..=most).contains(n)).ok_or_else(|| {
                c.refuse(format!("`{key}` must be a whole number from {least} to {most}, found {found}"))
                    .hint("is the file the one that came with the model?")
            })
        };
        let streams = whole("altup_num_inputs", 1, 64)?;
        let clip = match c.settings.get("altup_coef_clip").cloned().unwrap_or_default() {
            Value::Null => None,
            found => Some(found.as_f64().filter(|x| *x > 0.0 && x.is_finite()).ok_or_else(|| {
                c.refuse(format!("`altup_coef_clip` must be a number above 0, or null, found {found}"))
                    .hint("null: the coefficients have no bound")
            })?),
        };
        Ok(Self {
            streams,
            active: whole("altup_active_idx", 0, streams - 1)?,
            clip,
            scales: c.flag("altup_correct_scale", true),
            rank: whole("laurel_rank", 1, 1 << 24)?,
            input: whole("hidden_size_per_layer_input", 1, 1 << 16)?,
            vocabulary: whole("vocab_size_per_layer_input", 1, 1 << 24)?,
        })
    }
}

/// Returns the layers' attention, MLPs and norms in the terms of the other families. Fails for a list of sparsities that is not
/// one for each layer.
fn design(c: &Config) -> Result<Design> {
    let llama = Design::llama(c)?;
    const SPARSITY: &str = "activation_sparsity_pattern";
    let found = c.settings.get(SPARSITY).cloned().unwrap_or_default();
    let list = found.as_array().map(Vec::as_slice).unwrap_or_default();
    let sparsity: Vec<f64> = list.iter().filter_map(Value::as_f64).filter(|share| (0.0..1.0).contains(share)).collect();
    if sparsity.len() != list.len() || sparsity.len() as i64 != c.num_hidden_layers {
        return Err(c
            .refuse(format!(
                "`{SPARSITY}` must be a list with a share from 0 to below 1 for each of the {} layers, found {found}",
                c.num_hidden_layers
            ))
            .hint("0 in a layer whose gates are all used; without the key, the first 10 of more layers have 0.95"));
    }
    let attention = AttentionDesign { qk_norm: QkNorm::PerHead, value_norm: true, scale: 1.0, ..llama.attention };
    let softcap = c.settings.get("final_logit_softcapping").and_then(Value::as_f64);
    let logits = LogitChange { scale: 1.0, softcap };
    let embedding_scale = (c.hidden_size as f64).sqrt();
    Ok(Design { attention, logits, sparsity, embedding_scale, ..llama })
}
