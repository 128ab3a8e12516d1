//! Checks config.json for values that are wrong in every family: they would give nonsense, or fail deep inside the
//! model.
//!
//! Checks only keys that all families share; each family checks its own.

use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Keys that must be integers of at least 1 if they are given.
const COUNTS: &[&str] = &["max_position_embeddings", "n_positions", "n_ctx", "sliding_window"];
/// Keys that must be finite numbers above 0 if they are given, at the top level or in the sections of rotary embedding.
const POSITIVE: &[&str] = &[
    "rms_norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "rope_theta",
    "rope_local_base_freq",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "swiglu_alpha",
    "swiglu_limit",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
];
const ROPE: &[&str] = &["rope_parameters", "rope_scaling"];

/// Fails if a value is impossible; `file` is used in error messages.
pub fn check(config: &Value, file: &Path) -> Result<()> {
    let refuse = |key: &str, expected: &str, found: &Value| {
        Err(Error::user(format!("{}: `{key}` must be {expected}, found {found}", file.display()))
            .hint("is the file the one that came with the model?"))
    };
    let given = |holder: &Value, key: &str| holder.get(key).filter(|v| !v.is_null()).cloned();
    // transformers writes a window of 0 beside `use_sliding_window: false`.
    let unused = |key: &str| key == "sliding_window" && config.get("use_sliding_window") == Some(&Value::Bool(false));
    for key in COUNTS.iter().filter(|key| !unused(key)) {
        if let Some(found) = given(config, key).filter(|v| v.as_i64().is_none_or(|n| n < 1)) {
            return refuse(key, "a whole number from 1 on", &found);
        }
    }
    let positive = |v: &Value| v.as_f64().is_some_and(|x| x.is_finite() && x > 0.0);
    for key in POSITIVE {
        if let Some(found) = given(config, key).filter(|v| !positive(v)) {
            return refuse(key, "a number above 0", &found);
        }
    }
    for place in ROPE {
        let Some(map) = given(config, place) else { continue };
        if !map.is_object() {
            return refuse(place, "a map", &map);
        }
        let inner = map.as_object().into_iter().flatten().filter(|(_, v)| v.is_object());
        for (kind, section) in inner {
            if let Some((key, found)) =
                POSITIVE.iter().find_map(|key| Some((key, given(section, key).filter(|v| !positive(v))?)))
            {
                return refuse(&format!("{place}.{kind}.{key}"), "a number above 0", &found);
            }
        }
        for key in POSITIVE {
            if let Some(found) = given(&map, key).filter(|v| !positive(v)) {
                return refuse(&format!("{place}.{key}"), "a number above 0", &found);
            }
        }
    }
    Ok(())
}
