//! The keys of a LoRA in PEFT's adapter_config.json: reads them into a [`LoraSpec`] and writes them.

use super::spec::{LoraInit, LoraSpec, MAX_RANK};
use crate::adapters::kind::AdapterKind;
use crate::adapters::peft::{PeftConfig, number};
use crate::adapters::targets::Targets;
use crate::error::Result;
use serde_json::{Map, Value, json};

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
/// Returns the content of adapter_config.json with the keys that every PEFT since 0.4 reads.
pub fn write(spec: &LoraSpec, base: &str) -> Value {
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

/// Reads the settings. Fails for options and values that ft does not support.
pub(in crate::adapters) fn read(config: &PeftConfig) -> Result<LoraSpec> {
    config.check_keys(SUPPORTED_KEYS)?;
    let init = match config.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => LoraInit::Kaiming,
        Some(Value::String(s)) if s == "gaussian" => LoraInit::Gaussian,
        // These initialise A and B differently, but leave the base as it is.
        Some(Value::String(s)) if s == "eva" || s == "orthogonal" => LoraInit::Kaiming,
        // pissa, olora, corda, loftq and others change the base's weights when training starts.
        Some(_) => {
            return Err(config.unsupported(
                "init_lora_weights",
                "convert it to plain LoRA with PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            ));
        }
    };
    // PEFT's defaults: the first two for llama, mistral and qwen, the last for gpt2. No model has all of them.
    let default_targets = || Targets::Names(["q_proj", "v_proj", "c_attn"].map(String::from).into());
    let spec = LoraSpec {
        rank: config.read("r")?.unwrap_or(8),
        alpha: config.read("lora_alpha")?.unwrap_or(8.0),
        dropout: config.read("lora_dropout")?.unwrap_or(0.0),
        targets: config.read("target_modules")?.unwrap_or_else(default_targets),
        exclude: config.read("exclude_modules")?,
        layers: config.read_list("layers_to_transform")?,
        layers_pattern: config.read_list("layers_pattern")?.unwrap_or_default(),
        rslora: config.read("use_rslora")?.unwrap_or(false),
        rank_pattern: config.read("rank_pattern")?.unwrap_or_default(),
        alpha_pattern: config.read("alpha_pattern")?.unwrap_or_default(),
        modules_to_save: config.read("modules_to_save")?.unwrap_or_default(),
        init,
        from: None,
        fan_in_fan_out: config.read("fan_in_fan_out")?.unwrap_or(false),
    };
    let ranks = spec.rank_pattern.values().chain([&spec.rank]);
    if let Some(rank) = ranks.copied().find(|r| !(1..=MAX_RANK).contains(r)) {
        let hint = format!("a rank is between 1 and {MAX_RANK}");
        return Err(config.unsupported_value("r", &json!(rank), &hint));
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        let hint = "dropout is a probability: at least 0 and below 1";
        return Err(config.unsupported_value("lora_dropout", &json!(spec.dropout), hint));
    }
    config.check_head(spec.has_scalar_head())?;
    Ok(spec)
}
