//! Finds the family of a config.json; of a model that is not supported, the nearest that is.

use crate::error::{Error, Result};
use crate::models::families::FAMILIES;
use crate::models::family::Family;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::Path;

/// Returns the family of this `model_type`. Fails if there is none; the error names the nearest one.
pub(super) fn family(raw: &Value, model_type: &str, file: &Path) -> Result<&'static Family> {
    if let Some(family) = FAMILIES.iter().find(|f| f.names.contains(&model_type)) {
        return Ok(family);
    }
    let refused = Error::user(format!("{}: model_type `{model_type}` is not supported", file.display()));
    // A model of text and images keeps its language model's settings in a section of their own.
    let language = raw.get("text_config").and_then(|text| text.get("model_type")).and_then(Value::as_str);
    if let Some(text) = language.filter(|text| known().any(|name| name == *text)) {
        return Err(refused.hint(format!(
            "its language model is a `{text}`, which is supported: save that part alone with transformers (a directory whose config.json is \
             the section `text_config`)"
        )));
    }
    let all = known().collect::<Vec<_>>().join(", ");
    Err(match nearest(model_type) {
        Some(name) => refused.hint(format!("the nearest is `{name}`; supported: {all}")),
        None => match nearest_by_keys(raw) {
            Some(name) => refused.hint(format!("by its settings the nearest is `{name}`; supported: {all}")),
            None => refused.hint(format!("none is near it; supported: {all}")),
        },
    })
}

fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.names.iter().copied())
}

/// Returns the supported name whose family has most of its own keys in a config, at least three; of equal ones the family with
/// the fewest others.
fn nearest_by_keys(raw: &Value) -> Option<&'static str> {
    const LEAST: usize = 3;
    let of_family = |family: &'static Family| {
        let own = family.key_names.iter().map(|(_, own)| *own).chain(family.extra_keys.iter().copied());
        let own: BTreeSet<&str> = own.collect();
        let found = own.iter().filter(|key| raw.get(**key).is_some()).count();
        (found >= LEAST).then(|| ((found, Reverse(own.len())), family.names[0]))
    };
    let all = FAMILIES.iter().rev().filter(|family| !family.names[0].starts_with("ft_")).filter_map(of_family);
    all.max_by_key(|(fit, _)| *fit).map(|(_, name)| name)
}

/// Returns the supported name that begins like this one, by at least three letters and more than two fifths of it: the one with which it shares the longest
/// beginning, then the one of the nearest length.
fn nearest(model_type: &str) -> Option<&'static str> {
    let shared = |name: &str| name.chars().zip(model_type.chars()).take_while(|(a, b)| a == b).count();
    let found = known().max_by_key(|name| (shared(name), std::cmp::Reverse(name.len().abs_diff(model_type.len()))))?;
    (shared(found) >= 3 && 5 * shared(found) > 2 * model_type.len()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::{nearest, nearest_by_keys};
    use serde_json::json;

    #[test]
    fn without_such_a_name_the_nearest_has_the_same_keys() {
        let experts = json!({"hidden_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 5, "norm_topk_prob": true,
            "num_key_value_heads": 2, "head_dim": 4, "rope_theta": 1e4, "decoder_sparse_step": 1, "mlp_only_layers": []});
        assert_eq!(nearest_by_keys(&experts), Some("qwen3_moe"));
        let plain = json!({"hidden_size": 8, "num_key_value_heads": 2, "rope_theta": 1e4, "attention_bias": false, "mlp_bias": false});
        assert_eq!(nearest_by_keys(&plain), Some("llama"));
        assert_eq!(nearest_by_keys(&json!({"d_model": 8, "n_layer": 2, "vocab_size": 5})), None);
    }

    #[test]
    fn the_nearest_family_begins_alike() {
        assert_eq!(nearest("qwen3_next"), Some("qwen3_moe"));
        assert_eq!(nearest("gemma4"), Some("gemma2"));
        assert_eq!(nearest("gemma4_text"), Some("gemma3_text"));
        assert_eq!(nearest("mistral3"), Some("mistral"));
        assert_eq!([nearest("bert"), nearest("minimax_m2")], [None, None]);
    }
}
