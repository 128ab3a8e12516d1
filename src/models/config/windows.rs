//! Reads which layers attend through a sliding window, and through how long a one.

use super::reader::ConfigReader;
use crate::error::{Error, Result};
use serde_json::Value;

/// The kinds of attention that `layer_types` may name.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// Returns each layer's window in tokens; `None`: the layer sees all tokens before it. As in transformers, `layer_types` has
/// precedence; without it Qwen's `max_window_layers` is the first layer with a window; without both, all layers have it.
/// Fails for other kinds of attention, for lists of another length than the model has layers, and for a window that is
/// used and not given.
pub(super) fn read(r: &ConfigReader, layers: i64) -> Result<Vec<Option<i64>>> {
    let layers = layers as usize;
    let window = r
        .get("sliding_window")
        .and_then(Value::as_i64)
        .filter(|_| r.get("use_sliding_window") != Some(&Value::Bool(false)));
    let Some(kinds) = r.get("layer_types") else {
        let first = r.get("max_window_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
        return Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    let Some(kinds) = kinds.as_array().filter(|kinds| kinds.len() == layers) else {
        return Err(
            r.wrong_value("layer_types", &format!("a list with the kind of attention of each of the {layers} layers"))
        );
    };
    kinds
        .iter()
        .enumerate()
        .map(|(i, kind)| match kind.as_str() {
            Some(FULL) => Ok(None),
            // Qwen's files name the kind even where `use_sliding_window` turns the window off.
            Some(SLIDING) if window.is_some() || r.get("use_sliding_window").is_some() => Ok(window),
            Some(SLIDING) => {
                Err(r.wrong_value("sliding_window", &format!("a number of tokens, because layer {i} is `{SLIDING}`")))
            }
            _ => Err(Error::user(format!(
                "{}: `layer_types` has the attention {kind} in layer {i}, which ft does not compute",
                r.file.display()
            ))
            .hint(format!(
                "supported: {FULL}, {SLIDING}; the nearest that ft has is a `{}` with no other kinds",
                r.raw.get("model_type").and_then(Value::as_str).unwrap_or_default()
            ))),
        })
        .collect()
}
