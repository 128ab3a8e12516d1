//! Reads `target_parameters` of PEFT's adapter_config.json, which names weights instead of modules.
//!
//! PEFT made it for the fused weights of experts ([`fused`]). A weight of a linear layer may be named, too: its update is that
//! of a LoRA of the layer, with the same tensor names. ft reads both as a LoRA of layers and writes it as one, which PEFT
//! converts again when it reads it for a model with fused experts.

use super::fused;
use crate::adapters::peft::PeftConfig;
use crate::adapters::targets::Targets;
use crate::error::Result;
use indexmap::IndexMap;
use serde_json::json;

/// The key.
pub(in crate::adapters) const KEY: &str = "target_parameters";
/// What the name of a linear layer's weight ends with.
const WEIGHT: &str = ".weight";
/// Layers whose weights gpt2 stores as (in, out): PEFT then exchanges the factors.
const TRANSPOSED: [&str; 3] = ["c_attn", "c_proj", "c_fc"];

/// Returns the modules whose weights the config names, together with its target modules; `None` if it names no weights.
/// Fails for parameters that are no weights of linear layers, and for settings that mean something else with parameters.
pub(super) fn read(config: &PeftConfig) -> Result<Option<Targets>> {
    let names: Vec<String> = config.read(KEY)?.unwrap_or_default();
    if names.is_empty() {
        return Ok(None);
    }
    let mut modules = match config.read("target_modules")? {
        None => Vec::new(),
        Some(Targets::Names(modules)) => modules,
        Some(Targets::Pattern(_)) => {
            return Err(config.unsupported(KEY, "beside it target_modules must be a list: merge the adapter with PEFT"));
        }
    };
    for key in ["exclude_modules", "layers_to_transform"] {
        if config.get(key).is_some() {
            return Err(
                config.unsupported(key, "PEFT ignores it for target_parameters: name the layers in full instead")
            );
        }
    }
    let (of_experts, names): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| fused::pattern_of_layers(name).is_some());
    for name in names {
        let module = name.strip_suffix(WEIGHT).ok_or_else(|| {
            let hint =
                "weights of linear layers are read, and those of experts: experts.gate_up_proj and experts.down_proj";
            config.unsupported_value(KEY, &json!(name), hint)
        })?;
        if TRANSPOSED.contains(&module.rsplit('.').next().unwrap_or(module)) {
            let hint = "gpt2 stores this weight transposed: merge the adapter with PEFT and use the merged model";
            return Err(config.unsupported_value(KEY, &json!(name), hint));
        }
        modules.push(module.to_string());
    }
    if of_experts.is_empty() {
        return Ok(Some(Targets::Names(modules)));
    }
    let modules = modules.iter().map(|name| fancy_regex::escape(name).into_owned());
    let layers = of_experts.iter().filter_map(|name| fused::pattern_of_layers(&fancy_regex::escape(name)));
    let endings: Vec<String> = modules.chain(layers).collect();
    Ok(Some(Targets::Pattern(format!(r"(?:.*\.)?(?:{})", endings.join("|")))))
}

/// Returns patterns of modules for patterns of weights; those for target modules beside them stay. Fails for patterns that
/// match neither, because PEFT would ignore them.
pub(super) fn patterns<T: Copy>(
    config: &PeftConfig,
    key: &str,
    list: IndexMap<String, T>,
) -> Result<IndexMap<String, T>> {
    let modules = config.get("target_modules").is_some_and(|v| v.as_array().is_some_and(|list| !list.is_empty()));
    let module = |(pattern, value): (String, T)| match pattern.strip_suffix(WEIGHT) {
        Some(module) => Ok((module.trim_end_matches('\\').to_string(), value)),
        None => match fused::pattern_of_layers(&pattern) {
            Some(layers) => Ok((layers, value)),
            None if modules => Ok((pattern, value)),
            None => Err(config.unsupported(
                key,
                "with target_parameters a pattern must end with `.weight` or name experts: merge it with PEFT",
            )),
        },
    };
    list.into_iter().map(module).collect()
}
