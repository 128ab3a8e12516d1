//! Merges adapters into a base's weights, and several adapters into one. Needs only names and tensors, no model.
//!
//! All sums are in float32, one tensor at a time; the caller casts the result once. With an adapter of weight w, a
//! low-rank update adds `w · scale · B A`, and a module saved in full adds `w · (W - base)`.

use super::file::{self, AdapterFile};
use super::lora::{BASE_LAYER, EMBEDDING_A, EMBEDDING_B, adapted_module};
use super::spec::{LoraSpec, Targets};
use super::targets::{ModuleSelection, shortest_target_names};
use crate::error::{Error, Result};
use crate::nn::Weights;
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// An adapter from disk and its weight in the merge.
pub struct WeightedAdapter {
    /// The directory it was read from.
    pub folder: PathBuf,
    /// Its settings and tensors.
    pub file: AdapterFile,
    /// Its factor in the sum.
    pub weight: f64,
}

impl WeightedAdapter {
    /// Reads the adapter in `folder`.
    pub fn read(folder: &Path, weight: f64) -> Result<Self> {
        Ok(Self { folder: folder.into(), file: file::read(folder)?, weight })
    }

    /// Returns the changes to the base, by tensor name. If the adapter's file contains a base weight that differs
    /// from the base's, replacing it is the first change, as in PEFT. Fails for incomplete pairs of A and B, wrong
    /// ranks and unknown tensors.
    fn updates(&self, base: &Weights) -> Result<BTreeMap<String, Vec<TensorUpdate>>> {
        let origin = self.folder.join(file::TENSORS);
        let selection =
            ModuleSelection::new(&self.file.spec).map_err(|e| e.context(self.folder.join(file::CONFIG).display()))?;
        let tensors = &self.file.tensors;
        let get = |name: String| {
            tensors.get(&name).ok_or_else(|| {
                Error::user(format!("{}: `{name}` is missing", origin.display()))
                    .hint("A and B come in pairs: the file is incomplete")
            })
        };
        let mut updates: BTreeMap<String, Vec<TensorUpdate>> = BTreeMap::new();
        for (name, tensor) in tensors {
            let second = name.strip_suffix(".lora_B.weight").map(|module| (module, "lora_A.weight"));
            let table = || Some((name.strip_suffix(EMBEDDING_B)?.strip_suffix('.')?, EMBEDDING_A));
            if let Some((module, first)) = second.or_else(table) {
                get(format!("{module}.{first}"))?;
            } else if let Some(module) = adapted_module(name) {
                let table = name.ends_with(EMBEDDING_A);
                let b = get(format!("{module}.{}", if table { EMBEDDING_B } else { "lora_B.weight" }))?;
                let a = tensor;
                let (rank, alpha) = selection.rank_and_alpha(module);
                if a.dim() != 2 || b.dim() != 2 || a.size()[0] != rank || b.size()[1] != rank {
                    return Err(Error::user(format!(
                        "{}: `{module}` has A of shape {:?} and B of shape {:?}, but rank {rank} in adapter_config.json",
                        origin.display(),
                        a.size(),
                        b.size()
                    ))
                    .hint("config and tensors belong to different adapters, or rank_pattern was lost"));
                }
                let scale = super::lora::scale(alpha, rank, self.file.spec.rslora) * self.weight;
                // The update of an embedding is (B A)^T.
                let (a, b) = if table { (b.tr(), a.tr()) } else { (a.shallow_clone(), b.shallow_clone()) };
                updates.entry(format!("{module}.weight")).or_default().push(TensorUpdate::LowRank {
                    a,
                    b,
                    scale,
                    table,
                });
            } else if let Some(module) = name.strip_suffix(BASE_LAYER) {
                let weight = format!("{module}.weight");
                let update = TensorUpdate::BaseReplacement { tensor: tensor.shallow_clone(), weight: self.weight };
                // A weight of another shape counts as different, and is refused later together with the updates.
                if !base.get(&weight).is_some_and(|w| equal_values(&w, tensor)) {
                    updates.entry(weight).or_default().insert(0, update);
                }
            } else if selection.is_saved_whole(name) && !name.contains(".lora_") && !name.contains(".base_layer.") {
                let whole = TensorUpdate::Replacement { tensor: tensor.shallow_clone(), weight: self.weight };
                updates.entry(name.clone()).or_default().push(whole);
            } else {
                return Err(Error::user(format!(
                    "{}: `{name}` is not lora_A, lora_B or part of a module to save",
                    origin.display()
                ))
                .hint("merge the adapter with PEFT's merge_and_unload"));
            }
        }
        Ok(updates)
    }
}

fn flatten_updates(updates: BTreeMap<String, Vec<TensorUpdate>>) -> impl Iterator<Item = (String, TensorUpdate)> {
    updates.into_iter().flat_map(|(name, list)| list.into_iter().map(move |u| (name.clone(), u)))
}

/// Returns true if two tensors have equal values, whatever their dtypes.
fn equal_values(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.to_kind(Kind::Float).equal(&b.to_kind(Kind::Float))
}

/// The change that one adapter makes to one tensor.
enum TensorUpdate {
    /// Adds scale · B A; the scale includes the adapter's weight.
    LowRank {
        a: Tensor,
        b: Tensor,
        scale: f64,
        /// True for an embedding, whose factors are transposed and have other names in a file.
        table: bool,
    },
    /// Replaces a module that was trained in full.
    Replacement { tensor: Tensor, weight: f64 },
    /// Replaces the base weight by the different one that a low-rank update was trained on.
    BaseReplacement { tensor: Tensor, weight: f64 },
}

impl TensorUpdate {
    /// Adds the change to `sum`, which starts as `base` in float32. `transposed`: both are stored as (in, out).
    fn add(&self, sum: &mut Tensor, base: &Tensor, transposed: bool) {
        match self {
            TensorUpdate::LowRank { a, b, scale, .. } if transposed => {
                let _ = sum.addmm_(&(a.to_kind(Kind::Float).tr() * *scale), &b.to_kind(Kind::Float).tr());
            }
            TensorUpdate::LowRank { a, b, scale, .. } => {
                let _ = sum.addmm_(&(b.to_kind(Kind::Float) * *scale), &a.to_kind(Kind::Float));
            }
            TensorUpdate::Replacement { tensor, weight } | TensorUpdate::BaseReplacement { tensor, weight } => {
                *sum += (tensor.to_kind(Kind::Float) - base.to_kind(Kind::Float)) * *weight;
            }
        }
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        match self {
            TensorUpdate::LowRank { a, b, .. } if transposed => shape == [a.size()[1], b.size()[0]],
            TensorUpdate::LowRank { a, b, .. } => shape == [b.size()[0], a.size()[1]],
            TensorUpdate::Replacement { tensor, .. } | TensorUpdate::BaseReplacement { tensor, .. } => {
                shape == tensor.size()
            }
        }
    }

    fn shape(&self) -> String {
        match self {
            TensorUpdate::LowRank { a, b, .. } => format!("{:?} · {:?}", b.size(), a.size()),
            TensorUpdate::Replacement { tensor, .. } | TensorUpdate::BaseReplacement { tensor, .. } => {
                format!("{:?}", tensor.size())
            }
        }
    }
}

/// A base's weights with adapters merged into them; tensors are computed one by one on request.
pub struct MergedWeights<'a> {
    base: &'a Weights,
    updates: BTreeMap<String, Vec<TensorUpdate>>,
}

impl<'a> MergedWeights<'a> {
    /// Assigns each change of the adapters to a tensor of the base. Fails if the base has no such tensor or another
    /// shape, or if an adapter replaces one of `shared`: weights that embedding and output head share.
    pub fn new(base: &'a Weights, shared: &[&str], parts: &[WeightedAdapter]) -> Result<Self> {
        let mut updates: BTreeMap<String, Vec<TensorUpdate>> = BTreeMap::new();
        for part in parts {
            let origin = part.folder.join(file::TENSORS);
            for (name, update) in flatten_updates(part.updates(base)?) {
                if shared.contains(&name.as_str()) && !matches!(update, TensorUpdate::LowRank { .. }) {
                    return Err(Error::user(format!(
                        "{}: the adapter replaces `{name}`, which embedding and output head share in this model",
                        origin.display()
                    ))
                    .hint("merging it would separate the two: untie the base first, or train without that module"));
                }
                match base.shape(&name) {
                    Some(shape) if update.fits(shape, base.transposed(&name)) => {}
                    found => {
                        let found =
                            found.map_or("the base has no such tensor".into(), |s| format!("the base has {s:?}"));
                        return Err(Error::user(format!(
                            "{}: the update of `{name}` has shape {}, but {found}",
                            origin.display(),
                            update.shape()
                        ))
                        .hint("was the adapter trained on another base?"));
                    }
                }
                updates.entry(name).or_default().push(update);
            }
        }
        Ok(Self { base, updates })
    }

    /// Returns the names of the tensors that change.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.updates.keys().map(String::as_str)
    }

    /// Returns a merged tensor: in float32 if it changes, otherwise the base's as it is on disk. Fails for NaN or
    /// infinite results.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let base = self.base.get(name).ok_or_else(|| Error::bug(format!("merge: the base has no tensor `{name}`")))?;
        let merged = match self.updates.get(name).map(Vec::as_slice) {
            None => return Ok(base),
            // A complete replacement needs no arithmetic, which could round.
            Some([TensorUpdate::Replacement { tensor, weight }]) if *weight == 1.0 => tensor.to_kind(Kind::Float),
            Some(updates) => {
                let mut sum = base.to_kind(Kind::Float).copy();
                updates.iter().for_each(|u| u.add(&mut sum, &base, self.base.transposed(name)));
                sum
            }
        };
        if merged.isfinite().all().int64_value(&[]) == 0 {
            return Err(Error::user(format!("`{name}` has NaN or infinite values after merging"))
                .hint("the adapter or the base is damaged, or a weight is far too large"));
        }
        Ok(merged)
    }
}

/// Combines several adapters into one whose update is exactly their weighted sum. The matrices A (scaled) and B are
/// concatenated along the rank, so that alpha / rank is 1 in every module. Fails if a module is low-rank in one
/// adapter and saved in full in another, or if the adapters were trained on different base weights.
pub fn combine(base: &Weights, parts: &[WeightedAdapter]) -> Result<AdapterFile> {
    let _no_grad = tch::no_grad_guard();
    let mut modules: BTreeMap<String, Vec<(usize, TensorUpdate)>> = BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        for (name, update) in flatten_updates(part.updates(base)?) {
            modules.entry(name).or_default().push((i, update));
        }
    }
    let mut tensors = BTreeMap::new();
    let mut ranks: BTreeMap<String, i64> = BTreeMap::new();
    for (name, updates) in &modules {
        let low: Vec<_> = updates
            .iter()
            .filter_map(|(_, u)| match u {
                TensorUpdate::LowRank { a, b, scale, table } => {
                    Some((a.to_kind(Kind::Float) * *scale, b.to_kind(Kind::Float), *table))
                }
                TensorUpdate::Replacement { .. } | TensorUpdate::BaseReplacement { .. } => None,
            })
            .collect();
        if low.is_empty() {
            let whole = base.get(name).ok_or_else(|| {
                Error::user(format!("{}: no tensor `{name}`", base.origin().display()))
                    .hint("was the adapter trained on another base?")
            })?;
            let mut sum = whole.to_kind(Kind::Float).copy();
            match &updates[..] {
                [(_, TensorUpdate::Replacement { tensor, weight })] if *weight == 1.0 => {
                    sum = tensor.to_kind(Kind::Float)
                }
                updates => updates.iter().for_each(|(_, u)| u.add(&mut sum, &whole, base.transposed(name))),
            }
            tensors.insert(name.clone(), sum);
            continue;
        }
        if updates.iter().any(|(_, u)| matches!(u, TensorUpdate::Replacement { .. })) {
            let folders: Vec<String> = updates.iter().map(|(i, _)| parts[*i].folder.display().to_string()).collect();
            return Err(Error::user(format!(
                "`{name}` is saved in full by one adapter and has a low-rank update in another: {}",
                folders.join(", ")
            ))
            .hint("no adapter can hold that sum; merge into a model instead: leave out --as adapter"));
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let Some(beneath) = common_base_weight(base, name, updates, parts)? {
            tensors.insert(format!("{module}{BASE_LAYER}"), beneath);
        }
        let table = low.iter().any(|(.., table)| *table);
        let (a, b): (Vec<Tensor>, Vec<Tensor>) = low.into_iter().map(|(a, b, _)| (a, b)).unzip();
        let (a, b) = (Tensor::cat(&a, 0), Tensor::cat(&b, 1)); // (R, in), (out, R)
        ranks.insert(module.to_string(), a.size()[0]);
        let factors = match table {
            true => [(EMBEDDING_A, b.tr().contiguous()), (EMBEDDING_B, a.tr().contiguous())],
            false => [("lora_A.weight", a), ("lora_B.weight", b)],
        };
        tensors.extend(factors.map(|(end, factor)| (format!("{module}.{end}"), factor)));
    }
    let named: BTreeSet<&str> = parts.iter().filter_map(|p| p.file.base.as_deref()).collect();
    let base_name = (named.len() == 1).then(|| named.into_iter().next().unwrap_or_default().to_string());
    Ok(AdapterFile { spec: combined_spec(base, parts, &ranks), base: base_name, tensors })
}

/// Returns the base weight to save below the combined update of `name`; `None` if not every adapter's file contains
/// one. Fails if they differ.
fn common_base_weight(
    base: &Weights,
    name: &str,
    updates: &[(usize, TensorUpdate)],
    parts: &[WeightedAdapter],
) -> Result<Option<Tensor>> {
    let held = |i: usize| parts[i].file.tensors.get(&format!("{}{BASE_LAYER}", name.strip_suffix(".weight")?));
    let others = updates.iter().filter(|(_, u)| matches!(u, TensorUpdate::BaseReplacement { .. })).count();
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
            .hint("no adapter can hold that sum; merge into a model instead: leave out --as adapter"))
        }
    }
}

fn combined_spec(base: &Weights, parts: &[WeightedAdapter], ranks: &BTreeMap<String, i64>) -> LoraSpec {
    let saved: BTreeSet<String> = parts.iter().flat_map(|p| p.file.spec.modules_to_save.iter().cloned()).collect();
    let adapted: BTreeSet<&str> = ranks.keys().map(String::as_str).collect();
    let all = base
        .names()
        .filter_map(|n| n.strip_suffix(".weight"))
        .filter(|n| !saved.iter().any(|s| n.ends_with(s.as_str())));
    // The highest rank is the default and others are exceptions: readers that ignore patterns then allocate enough.
    let rank = ranks.values().copied().max().unwrap_or(1);
    let unlike = || ranks.iter().filter(|(_, r)| **r != rank);
    LoraSpec {
        rank,
        alpha: rank as f64,
        targets: Targets::Names(shortest_target_names(&adapted, all)),
        rank_pattern: unlike().map(|(m, r)| (m.clone(), *r)).collect::<IndexMap<_, _>>(),
        alpha_pattern: unlike().map(|(m, r)| (m.clone(), *r as f64)).collect::<IndexMap<_, _>>(),
        modules_to_save: saved.into_iter().collect(),
        fan_in_fan_out: adapted.iter().any(|m| base.transposed(&format!("{m}.weight"))),
        ..LoraSpec::default()
    }
}
