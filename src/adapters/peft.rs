//! The keys of PEFT's adapter_config.json: reads them into a [`LoraSpec`] and writes them.
//!
//! Keys that could change results and that ft does not support are refused, never ignored.

use super::spec::{LoraInit, LoraSpec, MAX_RANK, Targets};
use crate::error::{Error, Result};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Keys of adapter_config.json that are read into a [`LoraSpec`].
const SUPPORTED_KEYS: &[&str] = &[
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Keys that do not change the results of a trained adapter: names, and how training started. Any other key that is
/// set is refused, because it may.
const IGNORED_KEYS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Returns the content of adapter_config.json with the keys that every PEFT since 0.4 reads.
pub(super) fn config(spec: &LoraSpec, base: &str) -> Value {
    let targets = |t: &Targets| match t {
        Targets::Pattern(p) => json!(p),
        Targets::Names(n) => json!(n),
    };
    let mut config = json!({
        "alpha_pattern": spec.alpha_pattern,
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": spec.fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": match spec.init { LoraInit::Kaiming => json!(true), LoraInit::Gaussian => json!("gaussian") },
        "layer_replication": null,
        "layers_pattern": if spec.layers_pattern.is_empty() { Value::Null } else { json!(spec.layers_pattern) },
        "layers_to_transform": spec.layers,
        "loftq_config": {},
        "lora_alpha": number(spec.alpha),
        "lora_dropout": spec.dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": if spec.modules_to_save.is_empty() { Value::Null } else { json!(spec.modules_to_save) },
        "peft_type": "LORA",
        "r": spec.rank,
        "rank_pattern": spec.rank_pattern,
        "revision": null,
        "target_modules": targets(&spec.targets),
        "task_type": if spec.has_scalar_head() { "SEQ_CLS" } else { "CAUSAL_LM" },
        "use_dora": false,
        "use_rslora": spec.rslora,
    });
    // Older PEFT versions do not know this key: it is written only if it is set.
    if let Some(exclude) = &spec.exclude {
        config["exclude_modules"] = targets(exclude);
    }
    if !spec.alpha_pattern.is_empty() {
        config["alpha_pattern"] =
            spec.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect::<Map<_, _>>().into();
    }
    config
}

/// Returns whole numbers as JSON integers, as PEFT writes them.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Reads the settings from the keys of an adapter_config.json; `file` is used in error messages. Fails for kinds of
/// adapters, options and values that ft does not support.
pub(super) fn spec(raw: &Map<String, Value>, file: &Path) -> Result<LoraSpec> {
    let bad = |key: &str, found: &Value, hint: &str| {
        Err(Error::user(format!("{}: `{key}` is {found}, which ft does not support", file.display())).hint(hint))
    };
    let get = |key: &str| raw.get(key).filter(|v| !v.is_null());
    if get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return bad("peft_type", raw.get("peft_type").unwrap_or(&Value::Null), "only LORA adapters are read");
    }
    // Options that change results are either read below or refused here, never ignored.
    let off = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s == "none",
        _ => false,
    };
    let honoured = |key: &str| SUPPORTED_KEYS.contains(&key) || IGNORED_KEYS.contains(&key);
    if let Some((key, v)) = raw.iter().find(|(key, v)| !honoured(key) && !off(v)) {
        return bad(key, v, "merge the adapter with PEFT and use the merged model");
    }
    if let Some(v) = get("task_type").filter(|v| *v != "CAUSAL_LM" && *v != "SEQ_CLS") {
        return bad("task_type", v, "only adapters of CAUSAL_LM and, for reward models, SEQ_CLS are read");
    }
    let init = match get("init_lora_weights") {
        None | Some(Value::Bool(_)) => LoraInit::Kaiming,
        Some(Value::String(s)) if s == "gaussian" => LoraInit::Gaussian,
        // These initialise A and B differently, but leave the base as it is.
        Some(Value::String(s)) if s == "eva" || s == "orthogonal" => LoraInit::Kaiming,
        // pissa, olora, corda, loftq and others change the base's weights when training starts.
        Some(v) => {
            return bad(
                "init_lora_weights",
                v,
                "convert it to plain LoRA with PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            );
        }
    };
    let typed = |key: &str, e: serde_json::Error| {
        Error::user(format!("{}: `{key}`: {e}", file.display()))
            .hint("correct the value, or save the adapter again with PEFT")
    };
    macro_rules! field {
        ($key:literal, $default:expr) => {
            match get($key) {
                Some(v) => serde_json::from_value(v.clone()).map_err(|e| typed($key, e))?,
                None => $default,
            }
        };
    }
    let one_or_many =
        |key: &str| -> Option<Value> { get(key).map(|v| if v.is_array() { v.clone() } else { json!([v]) }) };
    let layers = one_or_many("layers_to_transform")
        .map(|v| serde_json::from_value(v).map_err(|e| typed("layers_to_transform", e)));
    let pattern =
        one_or_many("layers_pattern").map(|v| serde_json::from_value(v).map_err(|e| typed("layers_pattern", e)));
    let targets: Targets = match get("target_modules") {
        Some(v) => serde_json::from_value(v.clone()).map_err(|e| typed("target_modules", e))?,
        // PEFT's defaults: the first two for llama, mistral and qwen, the last for gpt2. No model has all of them.
        None => Targets::Names(["q_proj", "v_proj", "c_attn"].map(String::from).into()),
    };
    let spec = LoraSpec {
        rank: field!("r", 8),
        alpha: field!("lora_alpha", 8.0),
        dropout: field!("lora_dropout", 0.0),
        targets,
        exclude: get("exclude_modules")
            .map(|v| serde_json::from_value(v.clone()))
            .transpose()
            .map_err(|e| typed("exclude_modules", e))?,
        layers: layers.transpose()?,
        layers_pattern: pattern.transpose()?.unwrap_or_default(),
        rslora: field!("use_rslora", false),
        rank_pattern: field!("rank_pattern", IndexMap::new()),
        alpha_pattern: field!("alpha_pattern", IndexMap::new()),
        modules_to_save: field!("modules_to_save", Vec::new()),
        init,
        from: None,
        fan_in_fan_out: field!("fan_in_fan_out", false),
    };
    let ranks = spec.rank_pattern.values().chain([&spec.rank]);
    if let Some(rank) = ranks.copied().find(|r| !(1..=MAX_RANK).contains(r)) {
        return bad("r", &json!(rank), &format!("a rank is between 1 and {MAX_RANK}"));
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        return bad("lora_dropout", &json!(spec.dropout), "dropout is a probability: at least 0 and below 1");
    }
    if get("task_type").is_some_and(|v| v == "SEQ_CLS") && !spec.has_scalar_head() {
        return Err(Error::user(format!(
            "{}: `task_type` is SEQ_CLS, but modules_to_save lacks `score`: the scalar head was never saved",
            file.display()
        ))
        .hint("without the trained head every score would be random: train it again, with modules_to_save: [score]"));
    }
    Ok(spec)
}
