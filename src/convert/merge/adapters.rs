//! Merges adapters into their base model, or several adapters into one (`ft merge`), and verifies the result.

use super::inputs::refuse_unmergeable;
use super::page;
use super::report::MergeReport;
use super::search_section::SearchPicture;
use crate::adapters::merging::combine::{are_low_rank, combine, in_full};
use crate::adapters::merging::plan::{MergeForm, MergePlan};
use crate::adapters::merging::reduce::{as_lora, compare};
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::adapters::{AdapterFile, ModulePlan, file};
use crate::convert::export::adapter_folder::write_adapter_folder;
use crate::convert::export::publish::{publish, tensor_entry};
use crate::convert::folder::companions::{MODEL_FILES, copy_companion_files};
use crate::convert::folder::config_file::write_config;
use crate::convert::folder::disk_space::check_disk_space;
use crate::convert::folder::{new_tokens, stop_tokens, template};
use crate::convert::quantised_base::{self, QuantisationError};
use crate::convert::verify::check::ExportCheck;
use crate::convert::verify::kind::ExportKind;
use crate::convert::verify::report::{ExportReport, ExportVerdict};
use crate::convert::verify::thresholds::WeightChange;
use crate::error::{Error, Result};
use crate::models::{
    self, Config, FileTensor, Heads, LoadOptions, Model, QuantisedBase, Storage, VocabularyRows, file_tensors,
};
use crate::nn::weight::cast;
use crate::nn::{AdapterPlan, Weights, safetensors, weights};
use crate::report;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind};

/// Name of the adapter that holds the weighted sum of all adapters, which the result is compared with.
const SUM: &str = "sum";
/// What messages call the result before it has a folder.
const MERGED: &str = "the merged adapter";

/// Opens the base; also returns the names of the weights that embedding and output head share in it. A low-rank update
/// of one of them must not change the other, as in PEFT: if `parts` has such an update, each gets a weight of its own.
pub(in crate::convert) fn open_base(
    base: &Path,
    parts: &[WeightedAdapter],
) -> Result<(Config, Weights, Vec<&'static str>)> {
    let mut config = Config::read(base)?;
    let mut weights = models::weights(base, &config)?;
    let hint = "name a directory with the model's full-precision weights: ft merge DIR ADAPTER --out OUT";
    models::refuse_quantised(&weights, "merging into them would round the adapter away", hint)?;
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

/// Merges the adapters `parts` into the base, as their weighted sum, and writes a model directory. `dtype`: the dtype of all
/// floating-point weights; `None` keeps each tensor's own. Fails if an adapter does not fit the base or the result does not
/// pass verification.
pub fn merge_into_model(
    base: &Path,
    parts: &[WeightedAdapter],
    out: &Path,
    dtype: Option<Kind>,
    shard_bytes: u64,
) -> Result<ExportReport> {
    PreparedMerge::new(base, parts, MergePlan::default(), MergeForm::Model)?.write_model(out, dtype, shard_bytes)
}

/// Merges the adapters `parts` into one adapter, their weighted sum, and writes its directory.
pub fn merge_adapters(base: &Path, parts: &[WeightedAdapter], out: &Path) -> Result<ExportReport> {
    PreparedMerge::new(base, parts, MergePlan::default(), MergeForm::Adapter)?.write_adapter(out)
}

/// A merge that is computed as far as its report needs, before anything is written.
pub struct PreparedMerge<'a> {
    base: &'a Path,
    parts: &'a [WeightedAdapter],
    plan: MergePlan,
    config: Config,
    weights: Weights,
    /// Weights that embedding and output head share.
    shared: Vec<&'static str>,
    /// The result, if it is one LoRA that is not the exact sum.
    lora: Option<WeightedAdapter>,
    /// What the merge does.
    pub report: MergeReport,
    /// The search that found the weights, for the page.
    pub search: Option<SearchPicture>,
}

impl<'a> PreparedMerge<'a> {
    /// Merges the adapters `parts` by `plan`, one tensor in memory at a time; results that are one LoRA are kept. `form`:
    /// what will be written. Fails if an adapter does not fit the base, or has values that are not finite.
    pub fn new(base: &'a Path, parts: &'a [WeightedAdapter], plan: MergePlan, form: MergeForm) -> Result<Self> {
        refuse_unmergeable(base, parts)?;
        let (config, weights, shared) = open_base(base, parts)?;
        let merge = MergedWeights::planned(&weights, &shared, parts, plan.clone())?;
        let bar = report::bar(merge.changed().count() as u64, "merging");
        let reduces = !plan.is_sum() && (form == MergeForm::Adapter || plan.gives_products());
        let (lora, reports) = match reduces {
            true => {
                let (file, reports) = as_lora(&merge, parts, || bar.inc(1))?;
                let (folder, companions) = (MERGED.into(), MERGED.into());
                (Some(WeightedAdapter { folder, companions, file, weights: 1.0.into() }), reports)
            }
            false => (None, compare(&merge, || bar.inc(1))?),
        };
        bar.finish_and_clear();
        let report = MergeReport::new(&merge, reports);
        Ok(Self { base, parts, plan, config, weights, shared, lora, report, search: None })
    }

    /// Returns the changes to write: those of the one LoRA if the result is that, otherwise those of all adapters.
    fn merge(&self) -> Result<MergedWeights<'_>> {
        match &self.lora {
            Some(lora) => MergedWeights::new(&self.weights, &self.shared, std::slice::from_ref(lora)),
            None => MergedWeights::planned(&self.weights, &self.shared, self.parts, self.plan.clone()),
        }
    }

    /// Returns the adapter that has the effect of the merge, to compare the result with; `None` if that is the first of
    /// `parts`.
    fn whole_adapter(&self, merge: &MergedWeights) -> Result<Option<AdapterFile>> {
        Ok(match self.parts {
            _ if self.plan.is_sum() && are_low_rank(&self.weights, self.parts)? => {
                Some(combine(&self.weights, self.parts)?)
            }
            [part] if self.plan.is_sum() && part.weights.common() == Some(1.0) => None,
            _ => Some(in_full(&self.weights, merge)?),
        })
    }

    /// Returns the dtype of the base's first floating-point weight.
    fn own_kind(&self) -> Kind {
        let kinds = self.weights.names().filter_map(|n| self.weights.kind(n));
        kinds.into_iter().find(|k| is_float(*k)).unwrap_or(Kind::Float)
    }

    /// Writes a model directory. `dtype`: the dtype of all floating-point weights; `None` keeps each tensor's own. Fails if
    /// the result does not pass verification.
    pub fn write_model(&self, out: &Path, dtype: Option<Kind>, shard_bytes: u64) -> Result<ExportReport> {
        let (base, parts, weights) = (self.base, self.parts, &self.weights);
        let trained_over = quantised_base::trained_over(base, parts)?;
        let merge = self.merge()?;
        let names: Vec<&str> = weights.names().collect();
        let kind_of = |name: &str| {
            let own = weights.kind(name).unwrap_or(Kind::Float);
            if is_float(own) { dtype.unwrap_or(own) } else { own }
        };
        let parameters = names.iter().map(|n| (*n, weights.shape(n).unwrap_or_default().to_vec()));
        let files: BTreeMap<String, FileTensor> =
            file_tensors(&self.config, parameters).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let kind_of_file = |tensor: &FileTensor| kind_of(&tensor.parts[0]);
        let entries = files
            .values()
            .map(|tensor| tensor_entry(&tensor.name, &tensor.shape, kind_of_file(tensor)))
            .collect::<Result<Vec<_>>>()?;
        check_disk_space(out, entries.iter().map(safetensors::TensorHeader::bytes).sum())?;

        let computed = match dtype.unwrap_or(self.own_kind()) {
            Kind::BFloat16 => Kind::BFloat16,
            _ => Kind::Float,
        };
        let whole = entries.iter().all(|e| !matches!(e.dtype, safetensors::Dtype::BF16 | safetensors::Dtype::F16));
        let change = if whole { WeightChange::Folded } else { WeightChange::Rounded };
        // Loaded before anything is written, because this fails for an adapter that does not fit.
        let summed = match &self.lora {
            Some(_) => None,
            None => self.whole_adapter(&merge)?,
        };
        let sum = self.lora.as_ref().map(|lora| &lora.file).or(summed.as_ref());
        let reference = load_with_sum(base, parts, sum, computed, Storage::File)?;
        publish(out, |temp| {
            safetensors::write_model(temp, &entries, shard_bytes, |e| {
                let (tensor, kind) = (&files[&e.name], kind_of_file(&files[&e.name]));
                Ok(weights::bytes(&tensor.values(|part| Ok(cast(&merge.tensor(part)?, kind)))?))
            })?;
            write_config(&self.config, temp, dtype)?;
            copy_companion_files(base, temp, MODEL_FILES)?;
            inherit_training(temp, base, parts)?;
            let names = names.iter().map(|n| n.to_string()).collect();
            let tied = self.config.tie_word_embeddings;
            let check =
                ExportCheck { reference: &reference, folder: temp, export: ExportKind::Model, change, names, tied };
            let mut report = check.run(|name| merge.tensor(name).map(Some))?;
            if let Some(trained_over) = trained_over {
                let load = |base: &Path, storage| load_with_sum(base, parts, sum, computed, storage);
                let quantised = match trained_over.at_load() {
                    Some(format) => load(base, Storage::Quantised(format)),
                    None => quantised_base::stored_base(parts).and_then(|folder| load(folder, Storage::File)),
                };
                match quantised.and_then(|model| QuantisationError::measure(&trained_over, &model, &reference)) {
                    Ok(error) => {
                        report.notes.push(error.note(report.adapter_effect.as_ref()));
                        report.quantisation_error = Some(error);
                    }
                    Err(e) if trained_over.at_load().is_some() => return Err(e),
                    // The base with the quantised weights may be elsewhere by now.
                    Err(e) => report.notes.push(quantised_base::unmeasured(&trained_over, &e)),
                }
            }
            self.complete(temp, report)
        })
    }

    /// Writes one adapter with the effect of all and verifies it.
    pub fn write_adapter(&self, out: &Path) -> Result<ExportReport> {
        let (base, parts, weights) = (self.base, self.parts, &self.weights);
        let merge = self.merge()?;
        let summed = match &self.lora {
            Some(_) => None,
            None => Some(combine(weights, parts)?),
        };
        let sum = self.lora.as_ref().map(|lora| &lora.file).or(summed.as_ref());
        let sum = sum.ok_or_else(|| Error::bug("merge: no adapter to write"))?;
        let computed = if self.own_kind() == Kind::BFloat16 { Kind::BFloat16 } else { Kind::Float };
        let trained_over = quantised_base::trained_over(base, parts)?;
        let storage = trained_over.as_ref().and_then(QuantisedBase::at_load).map_or(Storage::File, Storage::Quantised);
        let reference = load_with_sum(base, parts, Some(sum), computed, storage)?;
        let base_name = sum.base.clone().unwrap_or_else(|| base.to_string_lossy().into_owned());
        publish(out, |temp| {
            check_disk_space(temp, sum.tensors.values().map(|t| 4 * t.numel() as u64).sum())?;
            write_adapter_folder(temp, &sum.spec, &base_name, base, sum.tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
            inherit_training(temp, base, parts)?;
            let names: BTreeSet<String> = sum.tensors.keys().cloned().collect();
            let export = ExportKind::Adapter { base };
            let tied = self.config.tie_word_embeddings;
            let check =
                ExportCheck { reference: &reference, folder: temp, export, change: WeightChange::None, names, tied };
            let mut report = check.run(|name| Ok(sum.tensors.get(name).map(|t| t.shallow_clone())))?;
            report.quantised_base = trained_over;
            // The new adapter, read back, must change every weight as all parts together do.
            let read = [WeightedAdapter::read(temp, 1.0)?];
            let one = MergedWeights::new(weights, &[], &read)?;
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
            self.complete(temp, report)
        })
    }

    /// Adds the report on the merge to that of the export, and its page to the folder.
    fn complete(&self, folder: &Path, mut report: ExportReport) -> Result<ExportReport> {
        if self.parts.len() > 1 || !self.plan.is_sum() || self.search.is_some() {
            page::write(&self.report, self.search.as_ref(), &folder.join(page::PAGE))?;
        }
        report.merge = Some(self.report.clone());
        Ok(report)
    }
}

/// Copies to the result in `folder` what the adapters were trained with besides weights: new tokens, chat template and stop
/// tokens.
pub(in crate::convert) fn inherit_training(folder: &Path, base: &Path, parts: &[WeightedAdapter]) -> Result<()> {
    let folders = || parts.iter().map(|p| p.companions.as_path());
    new_tokens::inherit_tokens(folder, base, folders())?;
    template::inherit_template(folder, base, folders())?;
    stop_tokens::inherit_stop_tokens(folder, base, folders())
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
        let plan = ModulePlan::new(&*sum.spec)?.with_base_weights(&sum.tensors).separating_head();
        plans.push((SUM.to_string(), Box::new(plan) as Box<dyn AdapterPlan>));
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
        file::load_into(model.params().adapter(0), &sum.tensors, Path::new(MERGED))?;
    }
    for (i, part) in parts.iter().enumerate() {
        let id = i + usize::from(sum.is_some());
        file::load_into(model.params().adapter(id), &part.file.tensors, &part.folder)?;
    }
    Ok(model)
}
