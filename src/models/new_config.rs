//! Makes the config.json of a new, untrained model from the few sizes that a recipe gives.
//!
//! Other programs may have other defaults for missing keys. So every value that the model is built with is written out.

use super::family::{Config, ExpertSizes};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The tokenizer's size and special ids, which go into the config.
#[derive(Debug, Clone, Copy)]
pub struct VocabularyInfo {
    /// Size of the tokenizer's vocabulary.
    pub size: i64,
    /// The id of the token that begins a text.
    pub bos: Option<u32>,
    /// The id of the token that ends a text.
    pub eos: Option<u32>,
    /// The id of the padding token.
    pub pad: Option<u32>,
}

/// Keys that every family's config.json carries, by their usual names.
const COMMON_KEYS: &[&str] = &[
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
];

/// Returns the value of a key about layers of experts; of those that the sizes do not say, the usual one.
fn of_experts(experts: &ExpertSizes, key: &str) -> Value {
    match key {
        "decoder_sparse_step" => json!(1),
        "mlp_only_layers" => json!([]),
        "moe_intermediate_size" => json!(experts.width),
        "norm_topk_prob" => json!(experts.renormalise),
        "num_experts" => json!(experts.count),
        "num_experts_per_tok" => json!(experts.chosen),
        "router_aux_loss_coef" => json!(experts.balance),
        "shared_expert_intermediate_size" => json!(experts.shared_width),
        _ => Value::Null,
    }
}

/// Returns the complete config for the keys in `given`; `file` is used in messages. `vocab_size` is taken from the
/// tokenizer if it is not given. Fails if it is given and the tokenizer has more tokens.
pub fn config(given: &Map<String, Value>, vocabulary: VocabularyInfo, file: &Path) -> Result<Config> {
    let mut raw = given.clone();
    match raw.get("vocab_size").filter(|v| !v.is_null()) {
        Some(size) if size.as_i64().is_some_and(|size| size < vocabulary.size) => {
            return Err(Error::user(format!(
                "{}: `vocab_size` is {size}, but the tokenizer has {} tokens",
                file.display(),
                vocabulary.size
            ))
            .hint("leave `vocab_size` out: it is taken from the tokenizer"));
        }
        Some(_) => {}
        None => drop(raw.insert("vocab_size".into(), json!(vocabulary.size))),
    }
    // Special ids copied from another model's config would end answers at an arbitrary token.
    for (key, id) in
        [("bos_token_id", vocabulary.bos), ("eos_token_id", vocabulary.eos), ("pad_token_id", vocabulary.pad)]
    {
        raw.insert(key.into(), json!(id));
    }
    let read = |raw: &Map<String, Value>| -> Result<Config> {
        let text = serde_json::to_string_pretty(raw).map_err(|e| Error::bug(format!("config.json: {e}")))?;
        Config::parse(file, &(text + "\n"))
    };
    let c = read(&raw)?;
    let family = c.family();
    let value = |key: &str| match key {
        "attention_bias" => json!(c.attention_bias),
        "head_dim" => json!(c.head_dim),
        "hidden_act" => json!(c.hidden_act),
        "hidden_size" => json!(c.hidden_size),
        "initializer_range" => json!(c.initializer_range),
        "intermediate_size" => json!(c.intermediate_size),
        "max_position_embeddings" => json!(c.max_position_embeddings),
        "mlp_bias" => json!(c.mlp_bias),
        "num_attention_heads" => json!(c.num_attention_heads),
        "num_hidden_layers" => json!(c.num_hidden_layers),
        "num_key_value_heads" => json!(c.num_key_value_heads),
        "rms_norm_eps" => json!(c.norm_eps),
        "rope_theta" => json!(c.rope_theta),
        "tie_word_embeddings" => json!(c.tie_word_embeddings),
        "vocab_size" => json!(c.vocab_size),
        "partial_rotary_factor" => json!(c.rotary_size as f64 / c.head_dim as f64),
        // What only some families have is written as it was read, or as their defaults fill it in.
        other => match c.experts.as_ref().map(|experts| of_experts(experts, other)) {
            Some(of_experts) if !of_experts.is_null() => of_experts,
            _ => c.settings.get(other).cloned().unwrap_or_default(),
        },
    };
    let common = COMMON_KEYS.iter().filter(|key| !family.foreign_keys.contains(key));
    for key in common.chain(family.extra_keys) {
        let own = family.key_names.iter().find(|(usual, _)| usual == key).map_or(*key, |(_, own)| own);
        let of_rope = ["rope_theta", "rope_local_base_freq", "partial_rotary_factor"].contains(key);
        if raw.get(own).is_none_or(Value::is_null) && !(of_rope && raw.contains_key("rope_parameters")) {
            raw.insert(own.into(), value(key));
        }
    }
    let class = family.names.iter().position(|n| *n == c.model_type).map(|i| family.architectures[i]);
    raw.insert("architectures".into(), json!([class]));
    raw.sort_keys();
    read(&raw)
}
