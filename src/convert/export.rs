//! Saves adapters and models from memory, and verifies every save.
//!
//! A directory is written under a temporary name, read back into a fresh model and compared with the model in memory.
//! Only then it is moved into place, with `export_report.json` inside. A directory that fails the comparison is kept as
//! `NAME.failed`.

use super::compatibility::{self, Compatibility};
use super::logit_distance::{self, LogitDistance};
use super::reward_folder;
use crate::adapters::{LoraSpec, Targets, file, lora, targets};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::models::{self, Config, Heads, LoadOptions, Model};
use crate::nn::Param;
use crate::nn::safetensors::{SHARD_BYTES, TensorHeader, write_model};
use crate::nn::weight::cast;
use crate::nn::weights::{self, Weights};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

pub const REPORT: &str = "export_report.json";

/// The kind of directory to write or verify.
#[derive(Debug, Clone, Copy)]
pub enum ExportKind<'a> {
    /// An adapter for the base in this folder.
    Adapter { base: &'a Path },
    /// A whole model.
    Model,
}

/// The result of verifying a directory; the contents of export_report.json.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    pub verdict: ExportVerdict,
    /// `adapter` or `model`.
    pub export: &'static str,
    /// What is wrong; empty if the verdict is `passed`.
    pub problems: Vec<String>,
    /// Hints for the user that are no errors.
    pub notes: Vec<String>,
    /// The dtype that both models computed in.
    pub computed_in: String,
    /// Number of prompts compared; `positions` counts their tokens.
    pub prompts: usize,
    pub positions: usize,
    /// Distance of the model read back from the model in memory.
    pub difference: LogitDistance,
    pub thresholds: LogitThresholds,
    /// Distance of the base without adapter from the model in memory, that is, the effect of the adapter. Adapters and
    /// merges only.
    pub adapter_effect: Option<LogitDistance>,
    /// Number of tensors compared bit for bit with what was to be written.
    pub tensors: usize,
    /// Whether embedding and head share one weight according to config.json; always false for an adapter.
    pub tied: bool,
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
    /// Size and SHA-256 of each weight file, by name.
    pub files: BTreeMap<String, WeightFile>,
    pub compatibility: Vec<Compatibility>,
    pub ft_version: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportVerdict {
    Passed,
    Failed,
}

#[derive(Debug, Clone, Serialize)]
pub struct WeightFile {
    pub bytes: u64,
    pub sha256: String,
}

/// The largest allowed distance of logits. The weights themselves are compared bit for bit, so the thresholds only have
/// to distinguish rounding errors from a model that is wired, scaled or configured wrongly.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LogitThresholds {
    pub relative: f64,
    pub mean_kl: f64,
    pub top1_agreement: f64,
}

/// Describes how the written weights may differ from those in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightChange {
    /// Not at all: the same weights, computed in the same format.
    None,
    /// The adapter was added to the base's weights.
    Folded,
    /// The weights on disk have fewer bits than the format of the computation.
    Rounded,
}

impl LogitThresholds {
    pub(super) fn new(computed: Kind, change: WeightChange) -> Self {
        match (computed, change) {
            // The weights are equal. Only the order of sums may differ (another memory alignment, another GPU kernel).
            (Kind::Float, WeightChange::None) => Self { relative: 1e-5, mean_kl: 1e-8, top1_agreement: 0.99 },
            // W x + s B A x is compared with (W + s B A) x: one rounding of 2^-24 per product, amplified by the layers.
            (Kind::Float, WeightChange::Folded) => Self { relative: 1e-4, mean_kl: 1e-6, top1_agreement: 0.99 },
            // bf16 has 8 bits of precision: every product is rounded by up to 2^-9, and sums run in another order.
            (_, WeightChange::None) => Self { relative: 2e-2, mean_kl: 1e-3, top1_agreement: 0.9 },
            // Every weight was rounded as well, by up to 2^-9 of its value: logits change by some percent of the
            // largest logit, and nearly equal ones swap ranks (a 135M model: 2.5 %, mean KL 3e-3, top-1 94 %). These
            // limits are too wide to detect a lost or doubled update; the comparison of weights detects it, since they
            // must equal the float32 sum rounded once.
            (_, WeightChange::Folded | WeightChange::Rounded) => {
                Self { relative: 0.1, mean_kl: 2e-2, top1_agreement: 0.8 }
            }
        }
    }

    fn problems(&self, d: &LogitDistance) -> Vec<String> {
        let above = |found: f64, most: f64| found.is_nan() || found > most;
        let mut problems = Vec::new();
        if above(d.relative, self.relative) {
            problems.push(format!(
                "answers (logits, scores) differ by {:.2e} of the largest, at most {:.0e} expected",
                d.relative, self.relative
            ));
        }
        if above(d.mean_kl, self.mean_kl) {
            problems.push(format!("mean KL is {:.2e}, at most {:.0e} expected", d.mean_kl, self.mean_kl));
        }
        if above(-d.top1_agreement, -self.top1_agreement) {
            problems
                .push(format!("top-1 agreement is {:.3}, at least {} expected", d.top1_agreement, self.top1_agreement));
        }
        problems
    }
}

/// Reads a directory into a fresh model and compares it with the model in memory, its active adapter included.
/// Differences are reported, not returned as errors; a directory that cannot be read is an error.
pub fn verify(reference: &Model, folder: &Path, export: ExportKind) -> Result<ExportReport> {
    match export {
        ExportKind::Adapter { .. } => {
            let name = reference.active_adapter().ok_or_else(|| Error::bug("verify: no adapter is switched on"))?;
            let id =
                reference.adapter_id(name).ok_or_else(|| Error::bug("verify: the active adapter has no number"))?;
            let tensors: BTreeMap<&str, &Tensor> =
                reference.params().adapter(id).map(|p| (p.name.as_str(), &p.tensor)).collect();
            let expected = |name: &str| Ok(tensors.get(name).map(|t| (*t).shallow_clone()));
            ExportCheck {
                reference,
                folder,
                export,
                change: WeightChange::None,
                names: tensors.keys().map(|n| n.to_string()).collect(),
                tied: reference.config().tie_word_embeddings,
            }
            .run(expected)
        }
        ExportKind::Model => {
            let tensors = written_tensors(reference);
            let expected = |name: &str| Ok(tensors.get(name).map(|t| (*t).shallow_clone()));
            // If the run computes in bf16, rounding its float32 master weights to bf16 changes no product: layers round
            // them too.
            let rounded = reference.kind() == Kind::Float && saved_kind(folder)? != Some(Kind::Float);
            let change = if rounded { WeightChange::Rounded } else { WeightChange::None };
            let names = tensors.keys().map(|n| n.to_string()).collect();
            let tied = reference.config().tie_word_embeddings;
            ExportCheck { reference, folder, export, change, names, tied }.run(expected)
        }
    }
}

/// Compares a directory with a model in memory.
pub(super) struct ExportCheck<'a> {
    pub reference: &'a Model,
    pub folder: &'a Path,
    pub export: ExportKind<'a>,
    pub change: WeightChange,
    /// The names of exactly those tensors that the folder must contain.
    pub names: BTreeSet<String>,
    /// Whether embedding and output head of a whole model are expected to share one weight.
    pub tied: bool,
}

impl ExportCheck<'_> {
    /// Runs the comparison. `expected` returns the value of a tensor by name; the tensor in the folder must equal it,
    /// rounded once to the folder's dtype.
    pub fn run(&self, mut expected: impl FnMut(&str) -> Result<Option<Tensor>>) -> Result<ExportReport> {
        let _no_grad = tch::no_grad_guard();
        let (written, files) = match self.export {
            ExportKind::Adapter { .. } => (file::read(self.folder)?.tensors, vec![self.folder.join(file::TENSORS)]),
            ExportKind::Model => (Weights::open(self.folder)?.all(), weight_files(self.folder)?),
        };
        let missing: Vec<String> = self.names.iter().filter(|n| !written.contains_key(*n)).cloned().collect();
        let unexpected: Vec<String> = written.keys().filter(|n| !self.names.contains(*n)).cloned().collect();
        let mut problems: Vec<String> =
            missing.iter().map(|n| format!("tensor `{n}` is missing in the folder")).collect();
        problems.extend(unexpected.iter().map(|n| format!("tensor `{n}` should not be in the folder")));
        for (name, tensor) in written.iter().filter(|(n, _)| self.names.contains(*n)) {
            let Some(wanted) = expected(name)? else { continue };
            let wanted = cast(&wanted.to_device(tch::Device::Cpu), tensor.kind());
            if wanted.size() != tensor.size() || !wanted.equal(tensor) {
                problems.push(format!("tensor `{name}` in the folder differs from the value in memory, rounded once"));
            }
        }

        let prompts = logit_distance::prompts(self.reference, self.tokenizer_folder())?;
        let ours = logit_distance::logits(self.reference, &prompts)?;
        let adapter_effect = match self.reference.active_adapter() {
            Some(_) => {
                let base = self.reference.with_adapter(None, |m| logit_distance::logits(m, &prompts))?;
                Some(LogitDistance::between(&ours, &base))
            }
            None => None,
        };
        let (device, kind) = (self.reference.device(), self.reference.kind());
        let scores = self.reference.heads() == Heads::Score;
        let fresh = match self.export {
            // Opening a scorer also compares it with the probes in its reward.json.
            ExportKind::Adapter { base } if scores => {
                models::open_scorer(base, Some(self.folder), device, kind).map(|s| s.0)
            }
            ExportKind::Model if scores => models::open_scorer(self.folder, None, device, kind).map(|s| s.0),
            ExportKind::Adapter { base } => models::open(base, &[self.folder.to_path_buf()], device, kind),
            ExportKind::Model => Model::load(
                self.folder,
                LoadOptions {
                    device,
                    kind,
                    storage: self.reference.storage(),
                    train_base: false,
                    adapters: Vec::new(),
                    heads: Heads::Tokens,
                },
            ),
        };
        let fresh = fresh.map_err(|e| e.context("reading back what was just written"))?;
        let difference = LogitDistance::between(&ours, &logit_distance::logits(&fresh, &prompts)?);
        let thresholds = LogitThresholds::new(kind, self.change);
        problems.extend(thresholds.problems(&difference));

        // A reward model has no output head that could be tied.
        let whole = matches!(self.export, ExportKind::Model) && !scores;
        let tied = whole && fresh.config().tie_word_embeddings;
        if tied && written.contains_key("lm_head.weight") {
            problems.push("config.json ties head and embedding, but lm_head.weight is written".into());
        }
        if tied != (whole && self.tied) {
            problems.push("the tie between embedding and head changed".into());
        }
        let compatibility = match self.export {
            ExportKind::Adapter { .. } => compatibility::of_adapter(&file::read(self.folder)?),
            ExportKind::Model if scores => compatibility::of_scorer(self.folder),
            ExportKind::Model => compatibility::of_model(self.folder),
        };
        Ok(ExportReport {
            verdict: if problems.is_empty() { ExportVerdict::Passed } else { ExportVerdict::Failed },
            export: if matches!(self.export, ExportKind::Model) { "model" } else { "adapter" },
            problems,
            notes: self.notes(&difference, adapter_effect.as_ref()),
            computed_in: format!("{kind:?}").to_lowercase(),
            prompts: prompts.len(),
            positions: prompts.iter().map(Vec::len).sum(),
            difference,
            thresholds,
            adapter_effect,
            tensors: written.len(),
            tied,
            missing,
            unexpected,
            files: files.iter().map(|f| weight_file(f)).collect::<Result<_>>()?,
            compatibility,
            ft_version: env!("CARGO_PKG_VERSION"),
        })
    }

    fn tokenizer_folder(&self) -> &Path {
        match self.export {
            ExportKind::Adapter { base } => base,
            ExportKind::Model => self.folder,
        }
    }

    /// Returns hints for the user. A merge into a narrow dtype can lose a weak adapter: although every weight is
    /// rounded correctly, the rounding is as large as the update.
    fn notes(&self, difference: &LogitDistance, effect: Option<&LogitDistance>) -> Vec<String> {
        match effect {
            Some(effect)
                if self.change != WeightChange::None
                    && difference.mean_kl > 0.25 * effect.mean_kl
                    && effect.mean_kl > 0.0 =>
            {
                vec![format!(
                    "rounding changes the answers by {:.0} % of the adapter's effect (mean KL {:.1e} against {:.1e}): --dtype f32 avoids it",
                    100.0 * difference.mean_kl / effect.mean_kl,
                    difference.mean_kl,
                    effect.mean_kl
                )]
            }
            Some(effect) if effect.max_abs == 0.0 => vec!["the adapter changes no answer: was it trained?".into()],
            _ => Vec::new(),
        }
    }
}

/// Writes an adapter of `model` as a PEFT directory and verifies it. `base` is the folder of the model it was trained
/// on.
pub fn save_adapter(model: &Model, adapter: &str, spec: &LoraSpec, base: &Path, folder: &Path) -> Result<ExportReport> {
    let id = model.adapter_id(adapter).ok_or_else(|| Error::bug(format!("no adapter `{adapter}` to save")))?;
    let params = || model.params().adapter(id).map(|p| (p.name.as_str(), &p.tensor));
    let adapted = adapted_modules(params().map(|(n, _)| n));
    let mut spec = with_named_targets(spec, &adapted, model.params().base().map(|p| p.name.as_str()));
    let module = |p: &Param| p.name.strip_suffix(".weight").is_some_and(|m| adapted.contains(m));
    spec.fan_in_fan_out = model.params().base().any(|p| p.transposed && module(p));
    publish(folder, |temp| {
        write_adapter_folder(temp, &spec, &base.to_string_lossy(), base, params())?;
        if model.heads() == Heads::Score {
            let pad = model.with_adapter(Some(adapter), |m| reward_folder::complete_folder(m, temp))?;
            write_text(&temp.join("README.md"), &reward_folder::adapter_card(&base.to_string_lossy(), pad))?;
        }
        model.with_adapter(Some(adapter), |m| verify(m, temp, ExportKind::Adapter { base }))
    })
}

/// Writes an adapter directory, with tokenizer, chat template and a README.md (model card).
pub(super) fn write_adapter_folder<'t>(
    folder: &Path,
    spec: &LoraSpec,
    base_name: &str,
    base: &Path,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)>,
) -> Result<()> {
    file::write(folder, spec, base_name, tensors)?;
    copy_companion_files(base, folder, TOKENIZER_FILES)?;
    let card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\npipeline_tag: text-generation\ntags:\n- lora\n---\n\nA LoRA adapter trained with ft {}. \
         Read it with PEFT, or with `ft generate --model BASE --adapter DIR`; fold it into the base with `ft merge`.\n\
         `{REPORT}` reports how the saved files were checked.\n",
        serde_json::to_string(base_name).unwrap_or_default(),
        env!("CARGO_PKG_VERSION"),
    );
    write_text(&folder.join("README.md"), &card)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fsutil::write_atomic(path, |w| std::io::Write::write_all(w, text.as_bytes()))
}

/// Writes the base weights of `model`, without adapters, as a Hugging Face directory in `dtype` and verifies it.
pub fn save_model(model: &Model, folder: &Path, dtype: Kind) -> Result<ExportReport> {
    let tensors = written_tensors(model);
    let entries = tensors.iter().map(|(n, t)| tensor_entry(n, &t.size(), dtype)).collect::<Result<Vec<_>>>()?;
    publish(folder, |temp| {
        check_disk_space(temp, entries.iter().map(TensorHeader::bytes).sum())?;
        write_model(temp, &entries, SHARD_BYTES, |e| Ok(weights::bytes(&cast(tensors[e.name.as_str()], dtype))))?;
        copy_companion_files(model.folder(), temp, MODEL_FILES)?;
        if model.heads() == Heads::Score {
            let pad = reward_folder::complete_folder(model, temp)?;
            let key = dtype_keys(&model.config().raw)[0];
            fsutil::write_json(
                &temp.join("config.json"),
                &reward_folder::reward_config(model.config(), (key, dtype_name(dtype)?), pad)?,
            )?;
        } else {
            write_config(model.config(), temp, Some(dtype))?;
        }
        model.with_adapter(None, |m| verify(m, temp, ExportKind::Model))
    })
}

/// Returns the tensors that a model directory gets. If the model has both an output head and a scalar head, the scalar
/// head is the value function of PPO; it is needed for training only and left out.
fn written_tensors(model: &Model) -> BTreeMap<&str, &Tensor> {
    let both = model.heads() == Heads::Both;
    let written = model.params().base().filter(|p| !(both && p.name == models::SCORE));
    written.map(|p| (p.name.as_str(), &p.tensor)).collect()
}

/// Lets `fill` write and verify a folder under a temporary name, adds the report and moves the folder to its place. If
/// the verdict is `failed`, the folder is kept as `NAME.failed` and an error is returned.
pub(super) fn publish(folder: &Path, fill: impl FnOnce(&Path) -> Result<ExportReport>) -> Result<ExportReport> {
    let folder: PathBuf = folder.components().collect(); // without a slash at the end
    let mut done = None;
    let failed = PathBuf::from(format!("{}.failed", folder.display()));
    fsutil::replace_dir(&folder, |temp| {
        let report = fill(temp)?;
        fsutil::write_json(&temp.join(REPORT), &report)?;
        if report.verdict == ExportVerdict::Failed {
            let _ = std::fs::remove_dir_all(&failed);
            std::fs::rename(temp, &failed).map_err(|e| fsutil::io_error("moving", &failed, e))?;
            let shown = report.problems.iter().take(12).cloned().collect::<Vec<_>>().join("\n  ");
            return Err(Error::user(format!(
                "{}: the written files differ from the model in memory:\n  {shown}",
                folder.display()
            ))
            .hint(format!("the full report and the files are in {}", failed.display())));
        }
        done = Some(report);
        Ok(())
    })?;
    done.ok_or_else(|| Error::bug("a folder was published without a report"))
}

/// Returns `spec` with its targets written as endings or full names of modules, which every reader of adapters
/// understands. Targets that are already a list of names stay unchanged.
pub fn with_named_targets<'n>(
    spec: &LoraSpec,
    adapted: &BTreeSet<&str>,
    base: impl Iterator<Item = &'n str>,
) -> LoraSpec {
    if matches!(spec.targets, Targets::Names(_)) && spec.exclude.is_none() {
        return spec.clone();
    }
    let saved = |module: &str| spec.modules_to_save.iter().any(|s| module.ends_with(s.as_str()));
    let all = base.filter_map(|n| n.strip_suffix(".weight")).chain(["lm_head"]).filter(|m| !saved(m));
    let names = targets::shortest_target_names(adapted, all);
    LoraSpec { targets: Targets::Names(names), exclude: None, layers: None, layers_pattern: Vec::new(), ..spec.clone() }
}

/// Returns the modules that have a low-rank update, from the names of an adapter's tensors.
pub fn adapted_modules<'n>(names: impl Iterator<Item = &'n str>) -> BTreeSet<&'n str> {
    names.filter_map(lora::adapted_module).collect()
}

pub(super) fn tensor_entry(name: &str, shape: &[i64], kind: Kind) -> Result<TensorHeader> {
    Ok(TensorHeader::new(name, weights::dtype_of(kind)?, shape.iter().map(|&n| n as usize).collect::<Vec<_>>()))
}

const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
];
pub(super) const MODEL_FILES: &[&str] = &["generation_config.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"];

/// Copies the tokenizer's files and `more` byte for byte. Files that do not exist are skipped.
pub(super) fn copy_companion_files(from: &Path, to: &Path, more: &[&str]) -> Result<()> {
    let more = more.iter().filter(|f| !TOKENIZER_FILES.contains(f));
    for name in TOKENIZER_FILES.iter().chain(more) {
        let source = from.join(name);
        if source.is_file() {
            let bytes = fsutil::read(&source)?;
            fsutil::write_atomic(&to.join(name), |w| std::io::Write::write_all(w, &bytes))?;
        }
    }
    let templates = from.join("additional_chat_templates");
    if templates.is_dir() {
        for item in std::fs::read_dir(&templates).map_err(|e| fsutil::io_error("reading", &templates, e))? {
            let path = item.map_err(|e| fsutil::io_error("reading", &templates, e))?.path();
            let bytes = fsutil::read(&path)?;
            let target = to.join("additional_chat_templates").join(path.file_name().unwrap_or_default());
            fsutil::write_atomic(&target, |w| std::io::Write::write_all(w, &bytes))?;
        }
    }
    Ok(())
}

/// Writes config.json unchanged (`dtype: None`), or with another dtype under the key that the file uses for it.
pub(super) fn write_config(config: &Config, to: &Path, dtype: Option<Kind>) -> Result<()> {
    let text = match dtype {
        Some(kind) => with_dtype(&config.text, &config.raw, dtype_name(kind)?)?,
        None => config.text.clone(),
    };
    fsutil::write_atomic(&to.join("config.json"), |w| std::io::Write::write_all(w, text.as_bytes()))
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
fn dtype_keys(raw: &Value) -> Vec<&'static str> {
    let written: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|k| raw.get(*k).is_some()).collect();
    let newer = raw.get("rope_parameters").is_some();
    if written.is_empty() { vec![if newer { "dtype" } else { "torch_dtype" }] } else { written }
}

fn dtype_name(kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "float32",
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        other => return Err(Error::bug(format!("no model is saved in {other:?}"))),
    })
}

/// Fails if the disk of `folder` does not have room for `bytes` more.
pub(super) fn check_disk_space(folder: &Path, bytes: u64) -> Result<()> {
    match crate::machine::free_disk(folder) {
        Some(free) if free < bytes + (64 << 20) => {
            let show = crate::report::bytes;
            Err(Error::user(format!("{}: {} needed, {} free", folder.display(), show(bytes), show(free)))
                .hint("free disk space, or choose a folder on another disk"))
        }
        _ => Ok(()),
    }
}

/// Returns the dtype of the first floating-point tensor in the folder.
fn saved_kind(folder: &Path) -> Result<Option<Kind>> {
    let weights = Weights::open(folder)?;
    Ok(weights.names().filter_map(|n| weights.kind(n)).find(|k| matches!(k, Kind::Float | Kind::BFloat16 | Kind::Half)))
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let index: Value = fsutil::read_json(&index)?;
    let files: BTreeSet<&str> =
        index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, f)| f.as_str()).collect();
    Ok(files.into_iter().map(|f| folder.join(f)).collect())
}

fn weight_file(path: &Path) -> Result<(String, WeightFile)> {
    let bytes = std::fs::metadata(path).map_err(|e| fsutil::io_error("reading", path, e))?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, WeightFile { bytes, sha256: fsutil::sha256(path)? }))
}
