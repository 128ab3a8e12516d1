//! Reads `target_parameters` of PEFT's adapter_config.json, which names weights instead of modules.
//!
//! PEFT made it for the fused weights of experts, of which ft has no models. A weight of a linear layer may be named, too: its
//! update is that of a LoRA of the layer, with the same tensor names. ft reads it as such a LoRA and writes it as one.

use crate::adapters::peft::PeftConfig;
use crate::adapters::targets::Targets;
use crate::error::Result;
use indexmap::IndexMap;
use serde_json::json;

/// The key.
pub(super) const KEY: &str = "target_parameters";
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
    for name in names {
        let module = name.strip_suffix(WEIGHT).ok_or_else(|| {
            let hint = "only weights of linear layers are read; other parameters are fused experts, and ft has no models with experts";
            config.unsupported_value(KEY, &json!(name), hint)
        })?;
        if TRANSPOSED.contains(&module.rsplit('.').next().unwrap_or(module)) {
            let hint = "gpt2 stores this weight transposed: merge the adapter with PEFT and use the merged model";
            return Err(config.unsupported_value(KEY, &json!(name), hint));
        }
        modules.push(module.to_string());
    }
    Ok(Some(Targets::Names(modules)))
}

/// Returns patterns of modules for patterns of weights. Fails for those that match no weight, because PEFT would ignore
/// them.
pub(super) fn patterns<T: Copy>(
    config: &PeftConfig,
    key: &str,
    list: IndexMap<String, T>,
) -> Result<IndexMap<String, T>> {
    let module = |(pattern, value): (String, T)| match pattern.strip_suffix(WEIGHT) {
        Some(module) => Ok((module.trim_end_matches('\\').to_string(), value)),
        None => {
            Err(config.unsupported(key, "with target_parameters a pattern must end with `.weight`: merge it with PEFT"))
        }
    };
    list.into_iter().map(module).collect()
}
