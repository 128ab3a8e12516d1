//! `ft adapter extract`: a LoRA from a model and its base, by the singular values of what training changed.

use crate::adapters::merging::WeightedAdapter;
use crate::adapters::merging::combine::{combined_adapter, tensors_of};
use crate::adapters::merging::plan::{MergeForm, MergePlan};
use crate::adapters::{EMBEDDINGS, HEAD};
use crate::convert::merge::adapters::PreparedMerge;
use crate::convert::verify::logit_distance::{self, LogitDistance};
use crate::convert::verify::report::ExportReport;
use crate::error::{Error, Result};
use crate::merging::{Delta, Truncation, on_one_thread, svd};
use crate::models::{self, Config};
use crate::nn::Weights;
use crate::report;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What becomes of changes that no LoRA holds: those of norms, biases, embeddings and output heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherChanges {
    /// Their modules are saved in full with the adapter.
    #[default]
    Save,
    /// They are refused.
    Refuse,
}

/// What was extracted.
#[derive(Debug, Clone, Serialize)]
pub struct ExtractReport {
    /// Share of the energy of all changes of linear layers that the adapter has.
    pub energy_kept: f64,
    /// Every linear layer that changed.
    pub modules: Vec<ExtractedModule>,
    /// Tensors that changed and are saved in full.
    pub saved_in_full: Vec<String>,
    /// Distance of the base with the adapter from the tuned model.
    pub from_tuned: LogitDistance,
    /// Distance of the base alone from the tuned model.
    pub base_from_tuned: LogitDistance,
    /// How the written files were checked.
    pub export: ExportReport,
}

/// A linear layer of an extracted adapter.
#[derive(Debug, Clone, Serialize)]
pub struct ExtractedModule {
    /// Its name.
    pub name: String,
    /// Norm of the change.
    pub norm: f64,
    /// Rank of its product.
    pub rank: i64,
    /// Share of the change's energy that the product has.
    pub energy_kept: f64,
}

/// Extracts the difference of the model in `tuned` from that in `base`, one matrix in memory at a time, and writes it to `out`
/// as a LoRA. Fails for models of other shapes, for values that are not finite, and if other tensors changed and `others`
/// refuses them.
pub fn extract(base: &Path, tuned: &Path, to: Truncation, others: OtherChanges, out: &Path) -> Result<ExtractReport> {
    let _no_grad = tch::no_grad_guard();
    let config = Config::read(base)?;
    let (before, after) = (models::weights(base, &config)?, models::weights(tuned, &Config::read(tuned)?)?);
    refuse_other_model(&before, &after)?;
    let shared = config.tied_weights();
    let (mut factors, mut rest, mut modules) = (BTreeMap::new(), Vec::new(), Vec::new());
    let names: Vec<&str> = before.names().collect();
    let bar = report::bar(names.len() as u64, "extracting");
    for name in names {
        bar.inc(1);
        let (Some(old), Some(new)) = (before.get(name), after.get(name)) else { continue };
        let change = new.to_kind(Kind::Float) - old.to_kind(Kind::Float);
        if change.isfinite().all().int64_value(&[]) == 0 {
            return Err(Error::user(format!("{}: `{name}` has NaN or infinite values", tuned.display()))
                .hint("the model is damaged, or its training diverged"));
        }
        if change.count_nonzero(None).int64_value(&[]) == 0 {
            continue;
        }
        let Some(module) = name.strip_suffix(".weight").filter(|_| is_linear(name, &change)) else {
            if others == OtherChanges::Save && shared.contains(&name) {
                return Err(Error::user(format!(
                    "`{name}` changed, and embedding and output head share it: an adapter would separate them"
                ))
                .hint("use the tuned model itself; with --others refuse, all changes that no LoRA holds are listed"));
            }
            rest.push(name.to_string());
            continue;
        };
        let change = if before.transposed(name) { change.tr().contiguous() } else { change };
        let delta = Delta::Dense(change);
        let (reduced, square) = on_one_thread(|| (svd::truncate(&delta, to), delta.dot(&delta)));
        modules.push(ExtractedModule {
            name: module.to_string(),
            norm: square.sqrt(),
            rank: reduced.a.size()[0],
            energy_kept: reduced.energy,
        });
        factors.insert(module.to_string(), [reduced.a, reduced.b]);
    }
    bar.finish_and_clear();
    if !rest.is_empty() && others == OtherChanges::Refuse {
        return Err(Error::user(format!("{} tensors changed that no LoRA holds: {}", rest.len(), listed(&rest)))
            .hint("--others save writes their modules in full; vLLM and llama.cpp read no such adapter"));
    }
    if factors.is_empty() && rest.is_empty() {
        return Err(Error::user(format!("{} and {} have equal weights", base.display(), tuned.display()))
            .hint("is one of the folders the wrong one?"));
    }
    let saved: BTreeMap<String, Tensor> = tensors_of(&after, &rest);
    // A layer whose bias changed as well is saved in full.
    modules.retain(|m| !saved.contains_key(&format!("{}.weight", m.name)));
    let square = |m: &ExtractedModule| m.norm * m.norm;
    let whole: f64 = modules.iter().map(square).sum();
    let kept: f64 = modules.iter().map(|m| m.energy_kept * square(m)).sum();
    let file = combined_adapter(&before, factors, saved, Some(base.to_string_lossy().into_owned()));
    let parts = [WeightedAdapter { folder: tuned.into(), companions: tuned.into(), file, weights: 1.0.into() }];
    let export = PreparedMerge::new(base, &parts, MergePlan::default(), MergeForm::Adapter)?.write_adapter(out)?;
    let [from_tuned, base_from_tuned] = distances(base, tuned, out)?;
    Ok(ExtractReport {
        energy_kept: if whole > 0.0 { kept / whole } else { 1.0 },
        modules,
        saved_in_full: rest,
        from_tuned,
        base_from_tuned,
        export,
    })
}

/// Returns true for the weight of a linear layer: a matrix that is no table and no output head.
fn is_linear(name: &str, weight: &Tensor) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let table = |table: &&str| module.rsplit('.').next() == Some(table);
    weight.dim() == 2 && !EMBEDDINGS.iter().chain(&["wpe", HEAD]).any(table)
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    format!("{}{more}", shown.join(", "))
}

/// Fails if the models do not have the same tensors, naming those that only one of them has, and those of other shapes.
fn refuse_other_model(before: &Weights, after: &Weights) -> Result<()> {
    let missing = |a: &Weights, b: &Weights| -> Vec<String> {
        a.names().filter(|name| b.shape(name).is_none()).map(String::from).collect()
    };
    let (gone, new) = (missing(before, after), missing(after, before));
    if let Some(name) = before.names().find(|name| after.shape(name).is_some_and(|s| Some(s) != before.shape(name))) {
        return Err(Error::user(format!(
            "`{name}` has shape {:?} in {} and {:?} in {}",
            before.shape(name).unwrap_or_default(),
            before.origin().display(),
            after.shape(name).unwrap_or_default(),
            after.origin().display()
        ))
        .hint("a LoRA is the difference of two models of the same shape: is this the right base?"));
    }
    for (names, origin) in [(gone, after.origin()), (new, before.origin())] {
        if !names.is_empty() {
            return Err(Error::user(format!("{} lacks {}", origin.display(), listed(&names)))
                .hint("a LoRA is the difference of two models with the same tensors: is this the right base?"));
        }
    }
    Ok(())
}

/// Returns how far the base with the adapter, and the base alone, are from the tuned model.
fn distances(base: &Path, tuned: &Path, adapter: &Path) -> Result<[LogitDistance; 2]> {
    let open =
        |folder: &Path, adapters: &[std::path::PathBuf]| models::open(folder, adapters, Device::Cpu, Kind::Float);
    let model = open(tuned, &[])?;
    let prompts = logit_distance::prompts(&model, base)?;
    let wanted = logit_distance::logits(&model, &prompts)?;
    drop(model);
    let adapted = open(base, &[adapter.to_path_buf()])?;
    let with = logit_distance::logits(&adapted, &prompts)?;
    let without = adapted.with_adapter(None, |model| logit_distance::logits(model, &prompts))?;
    Ok([LogitDistance::between(&wanted, &with), LogitDistance::between(&wanted, &without)])
}
