//! Combines several adapters into one LoRA, whatever their kinds, if their updates are products of two factors.

use super::merged_weights::{MergedWeights, WeightedAdapter, flatten};
use super::tensor_change::{TensorChange, equal_values};
use crate::adapters::base_layer::BASE_LAYER;
use crate::adapters::file::AdapterFile;
use crate::adapters::kind::HEAD;
use crate::adapters::lora::{self, LoraSpec};
use crate::adapters::spec::AdapterSpec;
use crate::adapters::targets::{Targets, shortest_target_names};
use crate::adapters::update::LowRankUpdate;
use crate::adapters::vocabulary_tables::is_embedding;
use crate::error::{Error, Result};
use crate::nn::Weights;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// Combines several adapters into one whose update is exactly their weighted sum. The matrices A (scaled) and B are
/// concatenated along the rank, so that alpha / rank is 1 in every module. Fails if a module is low-rank in one
/// adapter and saved in full in another, or if the adapters were trained on different base weights.
pub fn combine(base: &Weights, parts: &[WeightedAdapter]) -> Result<AdapterFile> {
    let _no_grad = tch::no_grad_guard();
    let mut modules: BTreeMap<String, Vec<(usize, TensorChange)>> = BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        for (name, update) in flatten(part.changes(base)?) {
            modules.entry(name).or_default().push((i, update));
        }
    }
    let mut combined = BTreeMap::new();
    let mut ranks: BTreeMap<String, i64> = BTreeMap::new();
    for (name, updates) in &modules {
        let mut low = Vec::new();
        for (i, change) in updates {
            let TensorChange::Update { update, weight } = change else { continue };
            let Some(LowRankUpdate { a, b, scale, table }) = update.low_rank() else {
                return Err(not_low_rank(name, &parts[*i]));
            };
            low.push((a.to_kind(Kind::Float) * (scale * weight), b.to_kind(Kind::Float), *table));
        }
        if low.is_empty() {
            let whole = base.get(name).ok_or_else(|| {
                Error::user(format!("{}: no tensor `{name}`", base.origin().display()))
                    .hint("was the adapter trained on another base?")
            })?;
            let mut sum = whole.to_kind(Kind::Float).copy();
            match &updates[..] {
                [(_, TensorChange::Replacement { tensor, weight })] if *weight == 1.0 => {
                    sum = tensor.to_kind(Kind::Float)
                }
                updates => updates.iter().for_each(|(_, u)| u.add(&mut sum, &whole, base.transposed(name))),
            }
            combined.insert(name.clone(), sum);
            continue;
        }
        if updates.iter().any(|(_, u)| matches!(u, TensorChange::Replacement { .. })) {
            let folders: Vec<String> = updates.iter().map(|(i, _)| parts[*i].folder.display().to_string()).collect();
            return Err(Error::user(format!(
                "`{name}` is saved in full by one adapter and has a low-rank update in another: {}",
                folders.join(", ")
            ))
            .hint("no adapter can hold that sum exactly; merge into a model (leave out --as adapter), or reduce it with --rank or --energy"));
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let Some(beneath) = common_base_weight(base, name, updates, parts)? {
            combined.insert(format!("{module}{BASE_LAYER}"), beneath);
        }
        let table = low.iter().any(|(.., table)| *table);
        let (a, b): (Vec<Tensor>, Vec<Tensor>) = low.into_iter().map(|(a, b, _)| (a, b)).unzip();
        let (a, b) = (Tensor::cat(&a, 0), Tensor::cat(&b, 1)); // (R, in), (out, R)
        ranks.insert(module.to_string(), a.size()[0]);
        combined.extend(lora::factors(module, LowRankUpdate { a, b, scale: 1.0, table }));
    }
    let saved = parts.iter().flat_map(|p| p.file.spec.modules_to_save().iter().cloned()).collect();
    let tie = parts.iter().all(|part| part.file.spec.asks_to_tie());
    let spec = AdapterSpec::Lora(combined_spec(base, &ranks, saved, tie));
    Ok(AdapterFile { spec, base: common_base_name(parts), tensors: combined, tables: BTreeMap::new() })
}

/// Returns true if [`combine`] can hold the updates of all adapters: each is a product of two factors.
pub fn are_low_rank(base: &Weights, parts: &[WeightedAdapter]) -> Result<bool> {
    for part in parts {
        for (_, change) in flatten(part.changes(base)?) {
            if matches!(&change, TensorChange::Update { update, .. } if update.low_rank().is_none()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Returns the merged weights as an adapter that saves every changed module in full: for sums that no other adapter can
/// hold.
pub fn in_full(base: &Weights, merge: &MergedWeights) -> Result<AdapterFile> {
    let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_string();
    let modules: BTreeSet<String> = merge.changed().map(module).collect();
    let mut tensors = BTreeMap::new();
    for name in modules.iter().flat_map(|module| ["weight", "bias"].map(|t| format!("{module}.{t}"))) {
        if base.shape(&name).is_some() {
            tensors.insert(name.clone(), merge.tensor(&name)?.to_kind(Kind::Float));
        }
    }
    let targets = Targets::Names(Vec::new());
    // If the base has no head of its own, its embedding is that of both.
    let tie = base.shape(&format!("{HEAD}.weight")).is_none() && modules.iter().any(|m| is_embedding(m));
    let spec = LoraSpec { targets, modules_to_save: modules.into_iter().collect(), tie, ..LoraSpec::default() };
    Ok(AdapterFile { spec: AdapterSpec::Lora(spec), base: None, tensors, tables: BTreeMap::new() })
}

/// Returns tensors with these names and those that belong to the same modules, in float32, as an adapter that saves the modules
/// in full contains them.
pub fn tensors_of(weights: &Weights, names: &[String]) -> BTreeMap<String, Tensor> {
    let modules: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
    let all = modules.iter().flat_map(|module| ["weight", "bias"].map(|t| format!("{module}.{t}")));
    all.filter_map(|name| Some((weights.get(&name)?.to_kind(Kind::Float), name))).map(|(t, name)| (name, t)).collect()
}

/// Returns a LoRA with these factors A (R, in) and B (out, R) of modules of the base, which are no tables, and these tensors of
/// modules saved in full. Modules that are in both are saved in full only.
pub fn combined_adapter(
    base: &Weights,
    factors: BTreeMap<String, [Tensor; 2]>,
    saved: BTreeMap<String, Tensor>,
    base_name: Option<String>,
) -> AdapterFile {
    let whole: BTreeSet<String> = saved.keys().filter_map(|name| Some(name.rsplit_once('.')?.0.to_string())).collect();
    let mut tensors = saved;
    let mut ranks = BTreeMap::new();
    for (module, [a, b]) in factors.into_iter().filter(|(module, _)| !whole.contains(module)) {
        ranks.insert(module.clone(), a.size()[0]);
        tensors.extend(lora::factors(&module, LowRankUpdate { a, b, scale: 1.0, table: false }));
    }
    let spec = AdapterSpec::Lora(combined_spec(base, &ranks, whole, false));
    AdapterFile { spec, base: base_name, tensors, tables: BTreeMap::new() }
}

/// Returns the base that the adapters name, if they name the same one.
pub(super) fn common_base_name(parts: &[WeightedAdapter]) -> Option<String> {
    let named: BTreeSet<&str> = parts.iter().filter_map(|p| p.file.base.as_deref()).collect();
    (named.len() == 1).then(|| named.into_iter().next().unwrap_or_default().to_string())
}

/// Returns the error for an update that a plain LoRA cannot hold.
fn not_low_rank(name: &str, part: &WeightedAdapter) -> Error {
    Error::user(format!("{}: the update of `{name}` is no product of two factors", part.folder.display()))
        .hint("only such updates can be added up exactly in one adapter; --rank or --energy writes the nearest LoRA of that size")
}

/// Returns the base weight to save below the combined update of `name`; `None` if not every adapter's file contains
/// one. Fails if they differ.
fn common_base_weight(
    base: &Weights,
    name: &str,
    updates: &[(usize, TensorChange)],
    parts: &[WeightedAdapter],
) -> Result<Option<Tensor>> {
    let held = |i: usize| parts[i].file.tensors.get(&format!("{}{BASE_LAYER}", name.strip_suffix(".weight")?));
    let others = updates.iter().filter(|(_, u)| matches!(u, TensorChange::BaseReplacement { .. })).count();
    let sources: BTreeSet<usize> = updates.iter().map(|(i, _)| *i).collect();
    if others == 0 {
        let all = sources.iter().all(|i| held(*i).is_some());
        return Ok(base.get(name).filter(|_| all));
    }
    let first = sources.first().and_then(|i| held(*i));
    match first {
        Some(first) if sources.iter().all(|i| held(*i).is_some_and(|t| equal_values(t, first))) => {
            Ok(Some(first.shallow_clone()))
        }
        _ => {
            let folders: Vec<String> = sources.iter().map(|i| parts[*i].folder.display().to_string()).collect();
            Err(Error::user(format!(
                "`{name}`: the adapters were trained on different weights: {}",
                folders.join(", ")
            ))
            .hint("no adapter can hold that sum exactly; merge into a model (leave out --as adapter), or reduce it with --rank or --energy"))
        }
    }
}

/// Returns the settings of a LoRA with these ranks of modules, whose scale is 1 everywhere, and these modules saved in full.
pub(super) fn combined_spec(
    base: &Weights,
    ranks: &BTreeMap<String, i64>,
    saved: BTreeSet<String>,
    tie: bool,
) -> LoraSpec {
    let adapted: BTreeSet<&str> = ranks.keys().map(String::as_str).collect();
    let all = base
        .names()
        .filter_map(|n| n.strip_suffix(".weight"))
        .filter(|n| !saved.iter().any(|s| n.ends_with(s.as_str())));
    let spec = LoraSpec {
        targets: Targets::Names(shortest_target_names(&adapted, all)),
        modules_to_save: saved.iter().cloned().collect(),
        tie,
        fan_in_fan_out: adapted.iter().any(|m| base.transposed(&format!("{m}.weight"))),
        ..LoraSpec::default()
    };
    lora::with_ranks(&spec, ranks)
}
