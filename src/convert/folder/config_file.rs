//! Writes config.json with another dtype and otherwise unchanged.

use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::Config;
use serde_json::{Value, json};
use std::path::Path;
use tch::Kind;

/// Writes config.json unchanged (`dtype: None`), or with another dtype under the key that the file uses for it.
pub(in crate::convert) fn write_config(config: &Config, to: &Path, dtype: Option<Kind>) -> Result<()> {
    let text = match dtype {
        Some(kind) => with_dtype(&config.text, &config.raw, dtype_name(kind)?)?,
        None => config.text.clone(),
    };
    fsutil::write_atomic(&to.join("config.json"), |w| std::io::Write::write_all(w, text.as_bytes()))
}

/// Writes config.json with other values for these keys, which it may lack.
pub(in crate::convert) fn write_config_with(config: &Config, to: &Path, keys: Vec<(&str, Value)>) -> Result<()> {
    let mut raw = config.raw.clone();
    let map = raw.as_object_mut().ok_or_else(|| Error::bug("config.json was read and is no object"))?;
    map.extend(keys.into_iter().map(|(key, value)| (key.to_string(), value)));
    fsutil::write_json(&to.join("config.json"), &raw)
}

/// Returns the text of config.json with another dtype. transformers 5 calls the key `dtype`, version 4 `torch_dtype`.
fn with_dtype(text: &str, raw: &Value, dtype: &str) -> Result<String> {
    let mut wanted = raw.clone();
    let keys = dtype_keys(raw);
    let map = wanted.as_object_mut().ok_or_else(|| Error::bug("config.json was read and is no object"))?;
    let mut text = text.to_string();
    for key in keys {
        if let Some(Value::String(old)) = map.insert(key.into(), json!(dtype)) {
            text = text.replacen(&format!("\"{key}\": \"{old}\""), &format!("\"{key}\": \"{dtype}\""), 1);
        }
    }
    // Replacing the text keeps the spelling of numbers. If the text was not found as expected, the JSON is written
    // anew.
    if serde_json::from_str::<Value>(&text).is_ok_and(|found| found == wanted) {
        return Ok(text);
    }
    let text = serde_json::to_string_pretty(&wanted).map_err(|e| Error::bug(format!("config.json: {e}")))?;
    Ok(text + "\n")
}

/// Returns the keys that config.json uses for the dtype. If it has none, the key of the transformers version that wrote
/// it.
pub(in crate::convert) fn dtype_keys(raw: &Value) -> Vec<&'static str> {
    let written: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|k| raw.get(*k).is_some()).collect();
    let newer = raw.get("rope_parameters").is_some();
    if written.is_empty() { vec![if newer { "dtype" } else { "torch_dtype" }] } else { written }
}

/// Returns transformers' name of a dtype. Fails for those that no model is saved in.
pub(in crate::convert) fn dtype_name(kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "float32",
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        other => return Err(Error::bug(format!("no model is saved in {other:?}"))),
    })
}

/// Returns true if config.json has the rotary embedding in the key of transformers 5 only.
pub(in crate::convert) fn lacks_older_rope_keys(config: &Config) -> bool {
    let given = |key: &str| config.raw.get(key).is_some_and(|value| !value.is_null());
    given("rope_parameters") && !given("rope_theta")
}

/// Returns the keys in which config.json has the rotary embedding for transformers 4, made of those of transformers 5: the base and
/// the scaling of all layers, or of those without a window, the base of those with one, and the part of a head that is rotated.
/// Empty if the file has these keys, or no rotary embedding.
pub(in crate::convert) fn older_rope_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let Some(Value::Object(section)) = config.raw.get("rope_parameters").filter(|_| lacks_older_rope_keys(config))
    else {
        return Vec::new();
    };
    let of_kind = |kind: &str| section.get(kind).and_then(Value::as_object);
    let (global, local) = match of_kind("full_attention") {
        Some(global) => (global, of_kind("sliding_attention")),
        None => (section, None),
    };
    let mut keys = Vec::new();
    let mut add = |key: &'static str, value: Option<&Value>| keys.extend(value.map(|value| (key, value.clone())));
    add("rope_theta", global.get("rope_theta"));
    add("rope_local_base_freq", local.and_then(|local| local.get("rope_theta")));
    let part = global.get("partial_rotary_factor");
    add("partial_rotary_factor", part);
    if config.model_type == "gpt_neox" {
        add("rotary_emb_base", global.get("rope_theta"));
        add("rotary_pct", part);
    }
    let kind = global.get("rope_type").or(global.get("type")).filter(|kind| *kind != "default");
    let scaling = kind.map(|kind| {
        let mut scaling = global.clone();
        ["rope_theta", "partial_rotary_factor"].iter().for_each(|key| drop(scaling.remove(*key)));
        // The first versions called the key so.
        scaling.insert("type".into(), kind.clone());
        Value::Object(scaling)
    });
    keys.push(("rope_scaling", scaling.unwrap_or(Value::Null)));
    keys
}

/// Returns the name that the family's files have for a key.
pub(in crate::convert) fn own_key(config: &Config, key: &'static str) -> &'static str {
    config.family().key_names.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own)
}

/// Changes config.json (`raw`) to that of a model that consists of these layers of the model of `config`, in this order.
pub(in crate::convert) fn choose_layers(config: &Config, raw: &mut Value, layers: &[usize]) {
    let Some(map) = raw.as_object_mut() else { return };
    map.insert(own_key(config, "num_hidden_layers").into(), json!(layers.len()));
    // Lists with an entry for each layer, also those that config.json leaves to the family's defaults.
    for key in ["layer_types", "no_rope_layers"] {
        if let Some(Value::Array(of_layers)) = config.settings.get(key) {
            let chosen: Vec<Value> = layers.iter().filter_map(|i| of_layers.get(*i).cloned()).collect();
            map.insert(key.into(), chosen.into());
        }
    }
    if let Some(first) = map.get("max_window_layers").and_then(Value::as_u64) {
        map.insert("max_window_layers".into(), json!(layers.iter().filter(|i| (**i as u64) < first).count()));
    }
}
