//! Reads and writes adapter directories in PEFT's layout: adapter_config.json with the keys of every PEFT version, and
//! adapter_model.safetensors, in which tensor names have the prefix `base_model.model.`.
//!
//! Keys that could change results and that ft does not support are refused, never ignored.

use super::lora::BASE_LAYER;
use super::spec::{LoraInit, LoraSpec, MAX_RANK, Targets};
use crate::error::{Error, Result};
use crate::fsutil::{parse_json, read_to_string, refuse_unfinished_move, write_json};
use crate::nn::{Param, Weights, weights};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

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
const PREFIX: &str = "base_model.model.";
pub const CONFIG: &str = "adapter_config.json";
pub const TENSORS: &str = "adapter_model.safetensors";

/// An adapter read from disk.
pub struct AdapterFile {
    pub spec: LoraSpec,
    /// The base it was trained on, as its config names it.
    pub base: Option<String>,
    /// Tensors by name without prefix, e.g. `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads an adapter directory. Fails for kinds of adapters and options that ft does not support.
pub fn read(folder: &Path) -> Result<AdapterFile> {
    refuse_unfinished_move(folder)?;
    let (spec, base) = read_config(&folder.join(CONFIG))?;
    if !folder.join(TENSORS).exists() {
        let err = Error::user(format!("{}: no {TENSORS}", folder.display()));
        return Err(match folder.join("adapter_model.bin").exists() {
            true => err.hint("adapter_model.bin is a pickle, which ft never opens: save it again as safetensors"),
            false => err.hint("the copy is incomplete"),
        });
    }
    let file = Weights::open_file(&folder.join(TENSORS))?;
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        let Some(short) = name.strip_prefix(PREFIX) else {
            return Err(Error::user(format!(
                "{}: `{name}` does not begin with `{PREFIX}`",
                folder.join(TENSORS).display()
            ))
            .hint("the file is not in PEFT's layout"));
        };
        // Old files contain the adapter's name in tensor names.
        let short = short.replace(".default.weight", ".weight").replace(".modules_to_save.", ".");
        let short = short.strip_suffix(".default").map_or(short.clone(), String::from);
        tensors.insert(short, file.get(name).expect("listed"));
    }
    Ok(AdapterFile { spec, base, tensors })
}

/// Reads an adapter_config.json: the spec, and the base it names.
pub fn read_config(path: &Path) -> Result<(LoraSpec, Option<String>)> {
    parse_config(path, &read_to_string(path)?)
}

/// Parses the text of an adapter_config.json; `path` is used in error messages.
pub fn parse_config(path: &Path, text: &str) -> Result<(LoraSpec, Option<String>)> {
    let raw: Map<String, Value> = parse_json(path, text)?;
    let base = raw.get("base_model_name_or_path").and_then(Value::as_str).map(String::from);
    Ok((spec(&raw, path)?, base))
}

/// Writes an adapter directory's config and tensors. `base` is the path or id users will load it on.
pub fn write<'a>(
    folder: &Path,
    spec: &LoraSpec,
    base: &str,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    write_json(&folder.join(CONFIG), &config(spec, base))?;
    let named: Vec<(String, &Tensor)> = tensors.map(|(name, t)| (format!("{PREFIX}{name}"), t)).collect();
    weights::save(&folder.join(TENSORS), named.iter().map(|(name, t)| (name.as_str(), *t)))
}

/// Copies an adapter's tensors into the parameters built for it. Fails with a list of missing, unexpected and wrongly
/// shaped tensors. Base weights are left out: [`LoraPlan::with_base_weights`](super::LoraPlan::on_bases) has already set them.
pub fn load_into<'a>(
    params: impl Iterator<Item = &'a Param>,
    tensors: &BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut problems = Vec::new();
    let mut wanted = std::collections::BTreeSet::new();
    for p in params {
        wanted.insert(p.name.as_str());
        if p.name.ends_with(BASE_LAYER) {
            continue;
        }
        match tensors.get(&p.name) {
            Some(t) if t.size() == p.tensor.size() => p.tensor.shallow_clone().copy_(t),
            Some(t) => {
                problems.push(format!("`{}` has shape {:?}, expected {:?}", p.name, t.size(), p.tensor.size()));
                continue;
            }
            None => {
                problems.push(format!("`{}` is missing, expected shape {:?}", p.name, p.tensor.size()));
                continue;
            }
        }
    }
    problems.extend(
        tensors.keys().filter(|n| !wanted.contains(n.as_str())).map(|n| format!("`{n}` fits no module of the model")),
    );
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(12);
    problems.truncate(12);
    if more > 0 {
        problems.push(format!("… and {more} more"));
    }
    Err(Error::user(format!("{}: the adapter does not fit the model:\n  {}", origin.display(), problems.join("\n  ")))
        .hint("was it trained on another base? adapter_config.json names it under base_model_name_or_path"))
}

/// Initialises an adapter of `spec` from one on disk. Fails unless both have the same rank, alpha and scaling.
pub fn init_from_adapter<'a>(params: impl Iterator<Item = &'a Param>, spec: &LoraSpec, folder: &Path) -> Result<()> {
    let file = read(folder)?;
    let (ours, theirs) = (spec, &file.spec);
    let scales = |s: &LoraSpec| {
        [
            ("rank", json!(s.rank)),
            ("alpha", json!(s.alpha)),
            ("rslora", json!(s.rslora)),
            ("rank_pattern", json!(s.rank_pattern)),
            ("alpha_pattern", json!(s.alpha_pattern)),
        ]
    };
    let unlike = scales(ours).into_iter().zip(scales(theirs)).filter(|(a, b)| a != b);
    let unlike: Vec<String> = unlike.map(|((key, a), (_, b))| format!("{key}: {b}, not {a}")).collect();
    if !unlike.is_empty() {
        return Err(Error::user(format!("{}: the adapter was trained with {}", folder.display(), unlike.join("; ")))
            .hint("set adapter.lora to what it was trained with"));
    }
    load_into(params, &file.tensors, folder)
}

/// Returns the content of adapter_config.json with the keys that every PEFT since 0.4 reads.
fn config(spec: &LoraSpec, base: &str) -> Value {
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

fn spec(raw: &Map<String, Value>, file: &Path) -> Result<LoraSpec> {
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
