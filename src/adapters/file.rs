//! Reads and writes adapter directories in PEFT's layout: adapter_config.json with the keys of every PEFT version, and
//! adapter_model.safetensors, in which tensor names have the prefix `base_model.model.`. Each kind reads and writes its own
//! keys.

use super::base_layer::BASE_LAYER;
use super::kind::SCORE_WEIGHT;
use super::peft::PeftConfig;
use super::spec::AdapterSpec;
use super::vocabulary_tables;
use super::{adalora, bitfit, ia3, ln_tuning, loha, lokr, lora, oft, trainable_tokens, vera, virtual_tokens};
use crate::error::{Error, Result};
use crate::fsutil::{parse_json, read_json, read_to_string, refuse_unfinished_move, write_json};
use crate::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use crate::nn::{AdapterPlan, Param, Weights, weights};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

const PREFIX: &str = "base_model.model.";
/// Prefix of tensors that no module contains, because several share them.
const SHARED_PREFIX: &str = "base_model.";
/// Name of the file with an adapter's settings.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file with an adapter's tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

/// What to do about an adapter of a kind that is not read.
const KINDS_READ: &str = "LORA, ADALORA, BEFT, IA3, LN_TUNING, LOHA, LOKR, OFT, TRAINABLE_TOKENS, VERA, PROMPT_TUNING, P_TUNING and PREFIX_TUNING are read; merge \
     another kind with PEFT and use that";

/// An adapter read from disk.
pub struct AdapterFile {
    /// The settings in its config.
    pub spec: AdapterSpec,
    /// The base it was trained on, as its config names it.
    pub base: Option<String>,
    /// Tensors by name without prefix, e.g. `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub tensors: BTreeMap<String, Tensor>,
    /// The base's tables of tokens (V, D) as they were in training, by module: PEFT saves them if it was given a base whose
    /// vocabulary had been resized.
    pub tables: BTreeMap<String, Tensor>,
}

impl AdapterFile {
    /// Returns the plan that attaches this adapter, read from `folder`, while a model is built.
    pub fn plan(&self, folder: &Path) -> Result<Box<dyn AdapterPlan>> {
        self.spec.plan_of_file(&folder.join(CONFIG), &self.tensors)
    }
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
        let shared = || match name == PROMPT_EMBEDDINGS {
            true => Some(name),
            // To PEFT, a model with virtual tokens has no adapted modules, whose names would have a further part.
            false => name.strip_prefix(SHARED_PREFIX).filter(|short| !short.contains('.') || is_scalar_head(short)),
        };
        let Some(short) = name.strip_prefix(PREFIX).or_else(shared) else {
            return Err(Error::user(format!(
                "{}: `{name}` does not begin with `{PREFIX}`",
                folder.join(TENSORS).display()
            ))
            .hint("the file is not in PEFT's layout"));
        };
        // Old files contain the adapter's name in tensor names.
        let short = if is_scalar_head(short) { SCORE_WEIGHT } else { short };
        let short = short.replace(".default.weight", ".weight").replace(".modules_to_save.", ".");
        let short = short.strip_suffix(".default").map_or(short.clone(), String::from);
        tensors.insert(short, file.get(name).expect("listed"));
    }
    if let AdapterSpec::Lora(lora) = &spec {
        let mut config: Value = read_json(&folder.join(CONFIG))?;
        // `read_config` has checked it.
        let parameters = serde_json::from_value(config[lora::TARGET_PARAMETERS].take()).unwrap_or_default();
        lora::split_stacks(lora, parameters, &mut tensors, &folder.join(TENSORS))?;
    }
    let tables = vocabulary_tables::take(&spec, &mut tensors);
    let tables = tables.map_err(|e| e.context(folder.join(CONFIG).display()))?;
    Ok(AdapterFile { spec, base, tensors, tables })
}

/// Returns true for the name of a scalar head's weight, which in some files has parts that say whose it is.
fn is_scalar_head(name: &str) -> bool {
    matches!(name, SCORE_WEIGHT | "score.modules_to_save.weight" | "score.modules_to_save.default.weight")
}

/// Reads an adapter_config.json: the spec, and the base it names.
pub fn read_config(path: &Path) -> Result<(AdapterSpec, Option<String>)> {
    parse_config(path, &read_to_string(path)?)
}

/// Parses the text of an adapter_config.json; `path` is used in error messages.
pub fn parse_config(path: &Path, text: &str) -> Result<(AdapterSpec, Option<String>)> {
    let raw: Map<String, Value> = parse_json(path, text)?;
    let base = raw.get("base_model_name_or_path").and_then(Value::as_str).map(String::from);
    let config = PeftConfig::new(&raw, path);
    let spec = match config.kind() {
        Some("LORA") => AdapterSpec::Lora(lora::read_config(&config)?),
        Some("IA3") => AdapterSpec::Ia3(ia3::read_config(&config)?),
        Some("LN_TUNING") => AdapterSpec::LnTuning(ln_tuning::read_config(&config)?),
        Some("VERA") => AdapterSpec::Vera(vera::read_config(&config)?),
        Some("LOHA") => AdapterSpec::Loha(loha::read_config(&config)?),
        Some("LOKR") => AdapterSpec::Lokr(lokr::read_config(&config)?),
        Some("OFT") => AdapterSpec::Oft(oft::read_config(&config)?),
        Some("ADALORA") => AdapterSpec::Adalora(adalora::read_config(&config)?),
        Some("TRAINABLE_TOKENS") => AdapterSpec::TrainableTokens(trainable_tokens::read_config(&config)?),
        Some("BEFT") => AdapterSpec::Bitfit(bitfit::read_config(&config)?),
        _ => match virtual_tokens::read_config(&config)? {
            Some(spec) => spec,
            None => return Err(config.unsupported("peft_type", KINDS_READ)),
        },
    };
    Ok((spec, base))
}

/// Does the same as [`write`] for a model whose files have stacks of so many experts: the factors of experts are written as
/// those of stacks, as PEFT reads them, if they are such factors ([`lora::stack_refusal`]).
pub fn write_for_stacks<'a>(
    folder: &Path,
    spec: &AdapterSpec,
    base: &str,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    experts: i64,
) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.collect();
    let stacked = match spec.as_lora() {
        Some(lora) => lora::stacked(lora, base, &tensors, experts)?,
        None => None,
    };
    match stacked {
        None => write(folder, spec, base, tensors.into_iter()),
        Some(stacked) => {
            let named = stacked.tensors.iter().map(|(name, t)| (name.as_str(), t));
            write_content(folder, spec, &stacked.config, named)
        }
    }
}

/// Writes an adapter directory's config and tensors. `base` is the path or id users will load it on.
pub fn write<'a>(
    folder: &Path,
    spec: &AdapterSpec,
    base: &str,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    write_content(folder, spec, &spec.config(base), tensors)
}

fn write_content<'a>(
    folder: &Path,
    spec: &AdapterSpec,
    config: &Value,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<()> {
    write_json(&folder.join(CONFIG), config)?;
    let prefix = |name: &str| match name {
        PROMPT_EMBEDDINGS => "",
        SCORE_WEIGHT if spec.tensor_prefix() == PROMPT_EMBEDDINGS => SHARED_PREFIX,
        name if name.contains('.') => PREFIX,
        _ => SHARED_PREFIX,
    };
    let tensors: Vec<(&str, &Tensor)> = tensors.collect();
    let of_head = vocabulary_tables::copies_for_head(spec, tensors.iter().copied());
    let all = tensors.into_iter().chain(of_head.iter().map(|(name, t)| (name.as_str(), t)));
    let named: Vec<(String, &Tensor)> = all.map(|(name, t)| (format!("{}{name}", prefix(name)), t)).collect();
    weights::save(&folder.join(TENSORS), named.iter().map(|(name, t)| (name.as_str(), *t)))
}

/// Returns the name that a parameter's values have among an adapter's tensors, if they are there.
pub fn tensor_name(param: &Param, tensors: &BTreeMap<String, Tensor>) -> String {
    // Factors of fused experts are named as most families name experts.
    let usual = lora::usual_name(&param.name).filter(|usual| tensors.contains_key(usual));
    usual.unwrap_or_else(|| param.name.clone())
}

/// Copies an adapter's tensors into the parameters built for it. Fails with a list of missing, unexpected and wrongly
/// shaped tensors. Base weights are left out: the plan has already set them.
pub fn load_into<'a>(
    params: impl Iterator<Item = &'a Param>,
    tensors: &BTreeMap<String, Tensor>,
    origin: &Path,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let params: Vec<&Param> = params.collect();
    let modules: BTreeSet<&str> = params.iter().filter_map(|p| Some(p.name.rsplit_once(".lora_")?.0)).collect();
    let tensors = &lora::for_modules(tensors, |module| modules.contains(module));
    let mut problems = Vec::new();
    let mut wanted = BTreeSet::new();
    for p in params {
        let name = tensor_name(p, tensors);
        let found = tensors.get(&name);
        wanted.insert(name);
        if p.name.ends_with(BASE_LAYER) {
            continue;
        }
        match found {
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
    problems
        .extend(tensors.keys().filter(|n| !wanted.contains(*n)).map(|n| format!("`{n}` fits no module of the model")));
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
