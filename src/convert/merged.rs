//! Merges adapters into their base model, or several adapters into one (`ft merge`), and verifies the result.

use super::export::adapter_folder::write_adapter_folder;
use super::export::publish::{publish, tensor_entry};
use super::folder::companions::{MODEL_FILES, copy_companion_files};
use super::folder::config_file::write_config;
use super::folder::disk_space::check_disk_space;
use super::folder::{new_tokens, stop_tokens, template};
use super::quantised_base::{self, QuantisationError};
use super::verify::check::ExportCheck;
use super::verify::kind::ExportKind;
use super::verify::report::{ExportReport, ExportVerdict};
use super::verify::thresholds::WeightChange;
use crate::adapters::combine::{are_low_rank, combine, in_full};
use crate::adapters::merge::{MergedWeights, WeightedAdapter};
use crate::adapters::{AdapterFile, file};
use crate::error::{Error, Result};
use crate::models::{self, Config, Heads, LoadOptions, Model, Storage, VocabularyRows};
use crate::nn::weight::cast;
use crate::nn::{Weights, safetensors, weights};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Device, Kind};

/// Name of the adapter that holds the weighted sum of all adapters, which the result is compared with.
const SUM: &str = "sum";

/// Fails if one of the adapters cannot be merged into a base: it is a reward model's, with a head, or of a kind that has no
/// update of weights.
fn refuse_unmergeable(base: &Path, parts: &[WeightedAdapter]) -> Result<()> {
    if let Some((part, why)) = parts.iter().find_map(|part| Some((part, part.file.spec.why_not_merged()?))) {
        return Err(Error::user(format!("{}: {why}", part.folder.display())).hint(format!(
            "use it without merging: ft generate --model {} --adapter {}",
            base.display(),
            part.folder.display()
        )));
    }
    match parts.iter().find(|part| part.file.spec.has_scalar_head()) {
        None => Ok(()),
        Some(part) => Err(Error::user(format!("{}: a reward model's adapter cannot be merged", part.folder.display()))
            .hint(format!(
                "use it without merging: ft score --model {} --adapter {} --input FILE --out FILE; to get a whole reward model, train with a recipe without `adapter`",
                base.display(),
                part.folder.display()
            ))),
    }
}

/// Opens the base; also returns the names of the weights that embedding and output head share in it. A low-rank update
/// of one of them must not change the other, as in PEFT: if `parts` has such an update, each gets a weight of its own.
fn open_base(base: &Path, parts: &[WeightedAdapter]) -> Result<(Config, Weights, Vec<&'static str>)> {
    let mut config = Config::read(base)?;
    let mut weights = models::weights(base, &config)?;
    if let Some(rows) = vocabulary_rows(&config, parts)? {
        rows.apply(&mut config, &mut weights, true)?;
    }
    // What was trained for embedding and head as one is merged into the weight that both share.
    let separate = || parts.iter().filter(|part| !part.file.spec.ties_head());
    let shared = if separate().next().is_some() { config.tied_weights() } else { Vec::new() };
    let adapts = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        separate().any(|p| p.file.tensors.keys().any(|t| p.file.spec.module_of(t) == Some(module)))
    };
    if shared.iter().any(|name| adapts(name)) {
        models::untie_head(&mut config, &mut weights)?;
    }
    Ok((config, weights, shared))
}

/// Returns the rows of new tokens that the adapters were trained with.
fn vocabulary_rows(config: &Config, parts: &[WeightedAdapter]) -> Result<Option<VocabularyRows>> {
    let files: Vec<_> = parts.iter().map(|part| (&part.file, part.folder.as_path())).collect();
    VocabularyRows::of_adapters(config, &files)
}

/// Merges the adapters `parts` into the base and writes a model directory. `dtype`: the dtype of all floating-point
/// weights; `None` keeps each tensor's own. Fails if an adapter does not fit the base or the result does not pass
/// verification.
pub fn merge_into_model(
    base: &Path,
    parts: &[WeightedAdapter],
    out: &Path,
    dtype: Option<Kind>,
    shard_bytes: u64,
) -> Result<ExportReport> {
    refuse_unmergeable(base, parts)?;
    let (config, weights, shared) = open_base(base, parts)?;
    let merge = MergedWeights::new(&weights, &shared, parts)?;
    let names: Vec<&str> = weights.names().collect();
    let kind_of = |name: &str| {
        let own = weights.kind(name).unwrap_or(Kind::Float);
        if is_float(own) { dtype.unwrap_or(own) } else { own }
    };
    let entries = names
        .iter()
        .map(|n| tensor_entry(n, weights.shape(n).unwrap_or_default(), kind_of(n)))
        .collect::<Result<Vec<_>>>()?;
    check_disk_space(out, entries.iter().map(safetensors::TensorHeader::bytes).sum())?;

    let own = weights.names().filter_map(|n| weights.kind(n)).find(|k| is_float(*k)).unwrap_or(Kind::Float);
    let computed = match dtype.unwrap_or(own) {
        Kind::BFloat16 => Kind::BFloat16,
        _ => Kind::Float,
    };
    let whole = entries.iter().all(|e| !matches!(e.dtype, safetensors::Dtype::BF16 | safetensors::Dtype::F16));
    let change = if whole { WeightChange::Folded } else { WeightChange::Rounded };
    // Loaded before anything is written, because this fails for an adapter that does not fit.
    let sum = match parts {
        _ if are_low_rank(&weights, parts)? => Some(combine(&weights, parts)?),
        [part] if part.weight == 1.0 => None,
        _ => Some(in_full(&weights, &merge)?),
    };
    let reference = load_with_sum(base, parts, sum.as_ref(), computed, Storage::File)?;
    let trained_over = quantised_base::trained_over(parts)?;
    publish(out, |temp| {
        safetensors::write_model(temp, &entries, shard_bytes, |e| {
            Ok(weights::bytes(&cast(&merge.tensor(&e.name)?, kind_of(&e.name))))
        })?;
        write_config(&config, temp, dtype)?;
        copy_companion_files(base, temp, MODEL_FILES)?;
        inherit_training(temp, base, parts)?;
        let names = names.iter().map(|n| n.to_string()).collect();
        let tied = config.tie_word_embeddings;
        let check = ExportCheck { reference: &reference, folder: temp, export: ExportKind::Model, change, names, tied };
        let mut report = check.run(|name| merge.tensor(name).map(Some))?;
        if let Some(format) = trained_over {
            let quantised = load_with_sum(base, parts, sum.as_ref(), computed, Storage::Quantised(format))?;
            let error = QuantisationError::measure(format, &quantised, &reference)?;
            report.notes.push(error.note(report.adapter_effect.as_ref()));
            report.quantisation_error = Some(error);
        }
        Ok(report)
    })
}

/// Copies to the result in `folder` what the adapters were trained with besides weights: new tokens, chat template and stop
/// tokens.
fn inherit_training(folder: &Path, base: &Path, parts: &[WeightedAdapter]) -> Result<()> {
    let folders = || parts.iter().map(|p| p.folder.as_path());
    new_tokens::inherit_tokens(folder, base, folders())?;
    template::inherit_template(folder, base, folders())?;
    stop_tokens::inherit_stop_tokens(folder, base, folders())
}

/// Merges the adapters `parts` into one adapter, their weighted sum, and writes its directory.
pub fn merge_adapters(base: &Path, parts: &[WeightedAdapter], out: &Path) -> Result<ExportReport> {
    refuse_unmergeable(base, parts)?;
    let (config, weights, shared) = open_base(base, parts)?;
    let sum = combine(&weights, parts)?;
    let merge = MergedWeights::new(&weights, &shared, parts)?;
    let own = weights.names().filter_map(|n| weights.kind(n)).find(|k| is_float(*k)).unwrap_or(Kind::Float);
    let computed = if own == Kind::BFloat16 { own } else { Kind::Float };
    let trained_over = quantised_base::trained_over(parts)?;
    let storage = trained_over.map_or(Storage::File, Storage::Quantised);
    let reference = load_with_sum(base, parts, Some(&sum), computed, storage)?;
    let base_name = sum.base.clone().unwrap_or_else(|| base.to_string_lossy().into_owned());
    publish(out, |temp| {
        check_disk_space(temp, sum.tensors.values().map(|t| 4 * t.numel() as u64).sum())?;
        write_adapter_folder(temp, &sum.spec, &base_name, base, sum.tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
        inherit_training(temp, base, parts)?;
        let names: BTreeSet<String> = sum.tensors.keys().cloned().collect();
        let export = ExportKind::Adapter { base };
        let tied = config.tie_word_embeddings;
        let check =
            ExportCheck { reference: &reference, folder: temp, export, change: WeightChange::None, names, tied };
        let mut report = check.run(|name| Ok(sum.tensors.get(name).map(|t| t.shallow_clone())))?;
        // The new adapter, read back, must change every weight as all parts together do.
        let read = [WeightedAdapter::read(temp, 1.0)?];
        let one = MergedWeights::new(&weights, &[], &read)?;
        for name in merge.changed() {
            let (wanted, found) = (merge.tensor(name)?, one.tensor(name)?);
            let error = (&found - &wanted).abs().max().double_value(&[]);
            let limit = 1e-5 * wanted.abs().max().double_value(&[]);
            if error.is_nan() || error > limit {
                report.problems.push(format!(
                    "`{name}`: the sum of the adapters is off by {error:.1e}, at most {limit:.1e} expected"
                ));
                report.verdict = ExportVerdict::Failed;
            }
        }
        Ok(report)
    })
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16)
}

/// Loads the base with every part, to check that each fits, and with their sum, which is the active adapter. Without a
/// sum, the first part is.
fn load_with_sum(
    base: &Path,
    parts: &[WeightedAdapter],
    sum: Option<&AdapterFile>,
    kind: Kind,
    storage: Storage,
) -> Result<Model> {
    let mut plans = Vec::new();
    if let Some(sum) = sum {
        plans.push((SUM.to_string(), sum.spec.plan_from(Some(&sum.tensors))?));
    }
    for (i, part) in parts.iter().enumerate() {
        plans.push((i.to_string(), part.file.plan(&part.folder)?));
    }
    let adapters = plans.iter().map(|(name, p)| (name.clone(), &**p)).collect();
    let rows = vocabulary_rows(&Config::read(base)?, parts)?;
    let (device, vocabulary, heads) = (Device::Cpu, rows.as_ref(), Heads::Tokens);
    let load = LoadOptions { device, kind, storage, train_base: None, adapters, vocabulary, heads };
    let model = Model::load(base, load)?;
    if let Some(sum) = sum {
        file::load_into(model.params().adapter(0), &sum.tensors, Path::new("the sum of the adapters"))?;
    }
    for (i, part) in parts.iter().enumerate() {
        let id = i + usize::from(sum.is_some());
        file::load_into(model.params().adapter(id), &part.file.tensors, &part.folder)?;
    }
    Ok(model)
}

/// Parses `ADAPTER` or `ADAPTER=WEIGHT` and reads the adapter.
pub fn parse_part(text: &str) -> Result<WeightedAdapter> {
    let (folder, weight) = split_weight(text);
    let weight = match weight.map(str::parse::<f64>) {
        None => 1.0,
        Some(Ok(w)) if w.is_finite() => w,
        Some(_) => {
            return Err(
                Error::user(format!("{text}: the weight after `=` must be a number")).hint("e.g. adapters/a=0.7")
            );
        }
    };
    WeightedAdapter::read(Path::new(folder), weight)
}

/// Splits `ADAPTER=WEIGHT` into folder and weight. If a folder of the whole name exists, `=` is part of its name.
pub fn split_weight(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('=').filter(|_| !Path::new(text).is_dir()) {
        Some((folder, weight)) => (folder, Some(weight)),
        None => (text, None),
    }
}
