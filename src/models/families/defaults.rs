//! Helpers with which families fill in transformers' defaults for keys that config.json lacks.

use serde_json::{Map, Value, json};

/// Keys of windows, for families without them.
pub(super) const WINDOWS: &[&str] = &["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];

/// The same, and the head size, which families derive that do not read it.
pub(super) const WINDOWS_AND_HEAD_SIZE: &[&str] =
    &["sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "head_dim"];

/// Keys of families with a choice of MLPs, windows and contexts, for those without.
pub(super) const CHOICES: &[&str] = &[
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "head_dim",
    "hidden_act",
    "intermediate_size",
    "max_position_embeddings",
];

/// Sets keys that are missing.
pub(super) fn fill<const N: usize>(config: &mut Map<String, Value>, defaults: [(&str, Value); N]) {
    for (key, value) in defaults {
        config.entry(key).or_insert(value);
    }
}

/// Sets keys that are missing or null.
pub(super) fn fill_null<const N: usize>(config: &mut Map<String, Value>, defaults: [(&str, Value); N]) {
    for (key, value) in defaults {
        if config.get(key).is_none_or(Value::is_null) {
            config.insert(key.into(), value);
        }
    }
}

/// Sets `layer_types`, if it is missing, to layers with a window but for every `period`th. The file's
/// `sliding_window_pattern` has precedence over `period`.
pub(super) fn alternate(config: &mut Map<String, Value>, period: u64) {
    let count = |key: &str| config.get(key).and_then(Value::as_u64).filter(|n| (1..=10_000).contains(n));
    let period = count("sliding_window_pattern").unwrap_or(period);
    let kind = |i: u64| if (i + 1) % period == 0 { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<&str> = (0..count("num_hidden_layers").unwrap_or(0)).map(kind).collect();
    fill_null(config, [("layer_types", json!(kinds))]);
}
