//! Finds the family of a config.json; of a model that is not supported, the nearest that is.

use crate::error::{Error, Result};
use crate::models::families::FAMILIES;
use crate::models::family::Family;
use serde_json::Value;
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
        None => refused.hint(format!("supported: {all}")),
    })
}

fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.names.iter().copied())
}

/// Returns the supported name that begins like this one, by at least three letters: the one with which it shares the longest
/// beginning, then the one of the nearest length.
fn nearest(model_type: &str) -> Option<&'static str> {
    let shared = |name: &str| name.chars().zip(model_type.chars()).take_while(|(a, b)| a == b).count();
    let found = known().max_by_key(|name| (shared(name), std::cmp::Reverse(name.len().abs_diff(model_type.len()))))?;
    (shared(found) >= 3).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_family_begins_alike() {
        assert_eq!(nearest("qwen3_next"), Some("qwen3_moe"));
        assert_eq!(nearest("gemma4"), Some("gemma2"));
        assert_eq!(nearest("gemma4_text"), Some("gemma3_text"));
        assert_eq!(nearest("mistral3"), Some("mistral"));
        assert_eq!(nearest("bert"), None);
    }
}
