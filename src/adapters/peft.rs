//! The keys of PEFT's adapter_config.json that all kinds of adapters have. Keys that could change results and that ft does
//! not support are refused, never ignored.

use super::kind::{AdapterKind, SCORE};
use super::module_settings::ModuleSettings;
use super::targets::Targets;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::Path;

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

/// Keys that select modules, which kinds of adapters have in common.
const MODULE_KEYS: &[&str] = &[
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "target_modules",
    "task_type",
];

/// The content of an adapter_config.json.
pub(super) struct PeftConfig<'a> {
    raw: &'a Map<String, Value>,
    /// Named in errors.
    file: &'a Path,
}

impl<'a> PeftConfig<'a> {
    pub fn new(raw: &'a Map<String, Value>, file: &'a Path) -> Self {
        Self { raw, file }
    }

    /// Returns PEFT's name of the adapter's kind, such as `LORA`.
    pub fn kind(&self) -> Option<&str> {
        self.get("peft_type").and_then(Value::as_str)
    }

    /// Returns the value of a key; `None` if it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.raw.get(key).filter(|v| !v.is_null())
    }

    /// Returns the value of a key; `None` if it is missing or null. Fails for a value of another type.
    pub fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.get(key).map(|v| self.parse(key, v.clone())).transpose()
    }

    /// Returns the value of a key that is a list or one of its items.
    pub fn read_list<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Vec<T>>> {
        let list = |v: &Value| if v.is_array() { v.clone() } else { json!([v]) };
        self.get(key).map(|v| self.parse(key, list(v))).transpose()
    }

    /// Returns a rank, which is between 1 and `most`; `usual` if the key is missing.
    pub fn read_rank(&self, key: &str, usual: i64, most: i64) -> Result<i64> {
        match self.read(key)?.unwrap_or(usual) {
            rank if (1..=most).contains(&rank) => Ok(rank),
            rank => Err(self.unsupported_value(key, &json!(rank), &format!("a rank is between 1 and {most}"))),
        }
    }

    /// Returns the probability of a dropout; 0 if the key is missing.
    pub fn read_dropout(&self, key: &str) -> Result<f64> {
        match self.read(key)?.unwrap_or(0.0) {
            p if (0.0..1.0).contains(&p) => Ok(p),
            p => Err(self.unsupported_value(key, &json!(p), "dropout is a probability: at least 0 and below 1")),
        }
    }

    /// Parses a value that belongs to a key. Fails for a value of another type.
    pub fn parse<T: DeserializeOwned>(&self, key: &str, value: Value) -> Result<T> {
        serde_json::from_value(value).map_err(|e| {
            Error::user(format!("{}: `{key}`: {e}", self.file.display()))
                .hint("correct the value, or save the adapter again with PEFT")
        })
    }

    /// Reads the settings that select modules. `default` are PEFT's targets for this kind where the file names none. Fails for
    /// the adapter of a reward model whose head was not saved.
    pub fn module_settings(&self, default: &[&str]) -> Result<ModuleSettings> {
        let default = || Targets::Names(default.iter().map(|name| name.to_string()).collect());
        let modules_to_save: Vec<String> = self.read("modules_to_save")?.unwrap_or_default();
        self.check_head(modules_to_save.iter().any(|module| module == SCORE))?;
        Ok(ModuleSettings {
            targets: Some(self.read("target_modules")?.unwrap_or_else(default)),
            exclude: self.read("exclude_modules")?,
            layers: self.read_list("layers_to_transform")?,
            layers_pattern: self.read_list("layers_pattern")?.unwrap_or_default(),
            modules_to_save,
            from: None,
            fan_in_fan_out: self.read("fan_in_fan_out")?.unwrap_or(false),
        })
    }

    /// Fails if a key is set that is neither common to all kinds nor among the kind's `own` nor without effect on the
    /// results of a trained adapter, and for tasks that ft does not know.
    pub fn check_keys(&self, own: &[&str]) -> Result<()> {
        let off = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::String(s) => s == "none",
            _ => false,
        };
        let honoured = |key: &str| [own, MODULE_KEYS, IGNORED_KEYS].iter().any(|keys| keys.contains(&key));
        if let Some((key, _)) = self.raw.iter().find(|(key, v)| !honoured(key) && !off(v)) {
            return Err(self.unsupported(key, "merge the adapter with PEFT and use the merged model"));
        }
        match self.get("task_type") {
            Some(v) if *v != "CAUSAL_LM" && *v != "SEQ_CLS" => {
                Err(self
                    .unsupported("task_type", "only adapters of CAUSAL_LM and, for reward models, SEQ_CLS are read"))
            }
            _ => Ok(()),
        }
    }

    /// Fails if the adapter is one of a reward model, and its head is not among the modules that were saved.
    pub fn check_head(&self, saves_head: bool) -> Result<()> {
        if self.get("task_type").is_none_or(|v| v != "SEQ_CLS") || saves_head {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: `task_type` is SEQ_CLS, but modules_to_save lacks `score`: the scalar head was never saved",
            self.file.display()
        ))
        .hint("without the trained head every score would be random: train it again, with modules_to_save: [score]"))
    }

    /// Returns the error for the value of a key that ft does not support.
    pub fn unsupported(&self, key: &str, hint: &str) -> Error {
        self.unsupported_value(key, self.raw.get(key).unwrap_or(&Value::Null), hint)
    }

    /// Returns the error for a value, of a key or in it, that ft does not support.
    pub fn unsupported_value(&self, key: &str, found: &Value, hint: &str) -> Error {
        Error::user(format!("{}: `{key}` is {found}, which ft does not support", self.file.display())).hint(hint)
    }
}

/// Returns the content of an adapter_config.json with the keys that every kind has and the kind's `own`, sorted. `base`
/// is the path or id of the base.
pub(super) fn config<K: AdapterKind + ?Sized>(kind: &K, peft_type: &str, base: &str, own: Value) -> Value {
    let targets = |t: &Targets| match t {
        Targets::Pattern(p) => json!(p),
        Targets::Names(n) => json!(n),
    };
    let list = |l: &[String]| if l.is_empty() { Value::Null } else { json!(l) };
    let rules = kind.rules();
    let common = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "inference_mode": true,
        "modules_to_save": list(rules.modules_to_save),
        "peft_type": peft_type,
        "revision": null,
        "target_modules": targets(rules.targets),
        "task_type": if kind.has_scalar_head() { "SEQ_CLS" } else { "CAUSAL_LM" },
    });
    let Value::Object(mut config) = common else { unreachable!("an object was written") };
    // Older PEFT versions do not know these keys for every kind: they are written only if they are set.
    let restrictions = [
        ("exclude_modules", rules.exclude.map(targets)),
        ("layers_pattern", (!rules.layers_pattern.is_empty()).then(|| list(rules.layers_pattern))),
        ("layers_to_transform", rules.layers.map(|layers| json!(layers))),
    ];
    config.extend(restrictions.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
    if let Value::Object(own) = own {
        config.extend(own);
    }
    config.sort_keys();
    Value::Object(config)
}

/// Returns the reason why PEFT cannot read an adapter of gpt2, for kinds that adapt torch's linear layers only.
pub(super) fn refusal_of_gpt2(title: &str, transposed: bool) -> Option<String> {
    transposed.then(|| format!("its {title} does not adapt the linear layers of gpt2"))
}

/// Returns whole numbers as JSON integers, as PEFT writes them.
pub(super) fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}
