//! What mlx-lm reads of a model's config.json, and what of a model it computes otherwise.

use super::families::{FAMILIES, is_known};
use crate::convert::folder::config_file::older_rope_keys;
use crate::error::Result;
use crate::models::Config;
use crate::nn::RopeScaling;
use serde_json::{Value, json};

/// Families in which mlx-lm takes the size of a head from the width.
const DERIVED_HEADS: [&str; 3] = ["qwen2", "phi3", "mixtral"];

/// Families in which mlx-lm has no scaling of the rotary embedding.
const UNSCALED: [&str; 3] = ["gemma", "gemma2", "mixtral"];

/// Families whose embedding mlx-lm always uses as the head.
const TIED: [&str; 2] = ["gemma", "gemma2"];

/// Fails for a model that mlx-lm computes otherwise than ft, with the reason.
pub(in crate::convert) fn refuse(config: &Config) -> Result<()> {
    let kind = config.model_type.as_str();
    let unknown = || format!("models are written for {}, not for {kind}", FAMILIES.join(", "));
    let why = if is_known(config) { difference(config) } else { Some(unknown()) };
    match why {
        None => Ok(()),
        Some(why) => Err(config
            .refuse(format!("this model cannot be written for mlx-lm: {why}"))
            .hint("other programs: ft export MODEL --to gguf, --to onnx or --to hf")),
    }
}

/// Returns what mlx-lm computes otherwise in a model of a known family; `None` if nothing.
pub(in crate::convert) fn difference(config: &Config) -> Option<String> {
    let kind = config.model_type.as_str();
    Some(if DERIVED_HEADS.contains(&kind) && config.head_dim * config.num_attention_heads != config.hidden_size {
        format!("mlx-lm takes {} / {} for the size of a head", config.hidden_size, config.num_attention_heads)
    } else if TIED.contains(&kind) && !config.tie_word_embeddings {
        format!("its head has a weight of its own, and mlx-lm uses the embedding of a {kind}")
    } else if let Some(scaling) = unknown_scaling(config) {
        format!("mlx-lm computes {scaling} otherwise, or not at all in a {kind}")
    } else if let Some(key) = ["clip_qkv"].iter().find(|key| config.raw.get(**key).is_some_and(|v| !v.is_null())) {
        format!("mlx-lm does not know `{key}`")
    } else {
        return None;
    })
}

/// Returns the name of the scaling of the rotary embedding, if mlx-lm computes another one.
fn unknown_scaling(config: &Config) -> Option<&'static str> {
    let name = match &config.rope_scaling {
        RopeScaling::None => return None,
        RopeScaling::Linear { .. } => "linear scaling",
        RopeScaling::Llama3 { .. } => "llama3 scaling",
        RopeScaling::Dynamic { .. } => "dynamic scaling",
        RopeScaling::Yarn { .. } => "YaRN",
        RopeScaling::Long { .. } => "LongRoPE",
    };
    let same = matches!(config.rope_scaling, RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. });
    let known = same && !UNSCALED.contains(&config.model_type.as_str()) && config.model_type != "phi3";
    (!known).then_some(name)
}

/// Returns the keys that config.json gets for mlx-lm: those of transformers 4 for the rotary embedding, and those whose defaults
/// differ.
pub(in crate::convert) fn keys(config: &Config) -> Vec<(&'static str, Value)> {
    let mut keys = older_rope_keys(config);
    if !keys.iter().any(|(key, _)| *key == "rope_theta") {
        keys.push(("rope_theta", json!(config.rope_theta)));
    }
    keys.push(("tie_word_embeddings", json!(config.tie_word_embeddings)));
    keys
}

/// Returns what mlx-lm computes otherwise although the model is written.
pub(in crate::convert) fn notes(config: &Config) -> Vec<String> {
    let window = config.windows.iter().flatten().min();
    let window = window.map(|window| {
        format!("mlx-lm applies no sliding window: results are equal for texts of up to {window} tokens")
    });
    let gelu = (config.model_type == "gemma").then(|| {
        "mlx-lm computes gemma's GELU by the error function, ft and transformers in its tanh form".to_string()
    });
    window.into_iter().chain(gelu).collect()
}
