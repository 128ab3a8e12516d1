//! Merges adapters into a base's weights. Needs only names and tensors, no model.
//!
//! All sums are in float32, one tensor at a time; the caller casts the result once. An adapter of weight w adds w times
//! the update of its kind, and a module saved in full adds `w · (W - base)`. Methods other than the sum are in
//! [`crate::merging`].

use super::part_weights::PartWeights;
use super::plan::{MergePlan, MergeWay};
use super::tensor_change::{TensorChange, equal_values};
use super::unfitting::unfitting;
use crate::adapters::base_layer::BASE_LAYER;
use crate::adapters::file::{self, AdapterFile};
use crate::adapters::lora;
use crate::adapters::update::LowRankUpdate;
use crate::error::{Error, Result};
use crate::merging::factors::FactorPart;
use crate::merging::{self, Delta, WeightedDelta, on_one_thread};
use crate::nn::Weights;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// An adapter from disk and its weight in the merge.
pub struct WeightedAdapter {
    /// The directory it was read from.
    pub folder: PathBuf,
    /// The directory that says what it was trained with besides weights: tokenizer, chat template, the base's quantisation.
    pub companions: PathBuf,
    /// Its settings and tensors.
    pub file: AdapterFile,
    /// The factors of its changes.
    pub weights: PartWeights,
}

impl WeightedAdapter {
    /// Reads the adapter in `folder`.
    pub fn read(folder: &Path, weight: f64) -> Result<Self> {
        Ok(Self { folder: folder.into(), companions: folder.into(), file: file::read(folder)?, weights: weight.into() })
    }

    /// Returns the changes to the base, by tensor name. If the adapter's file contains a base weight that differs
    /// from the base's, replacing it is the first change, as in PEFT. Fails for tensors that its kind does not know, and
    /// for those that do not fit together.
    pub(super) fn changes(&self, base: &Weights) -> Result<BTreeMap<String, Vec<TensorChange>>> {
        let (spec, weights) = (&self.file.spec, &self.weights);
        let tensors = &lora::for_modules(&self.file.tensors, |module| {
            let name = format!("{module}.weight");
            base.shape(&name).is_some() || base.quantised(&name).is_some()
        });
        let origin = self.folder.join(file::TENSORS);
        let selection = spec.selection().map_err(|e| e.context(self.folder.join(file::CONFIG).display()))?;
        let of_kind = |name: &str| name.contains(&format!(".{}", spec.tensor_prefix()));
        let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
        let mut changes: BTreeMap<String, Vec<TensorChange>> = BTreeMap::new();
        // Factors of fused experts are named as most families name experts.
        let of_base: BTreeMap<String, &str> = base.names().filter_map(|n| Some((lora::usual_name(n)?, n))).collect();
        for (name, update) in spec.updates_on(base, &modules, tensors, &origin)? {
            let name = match of_base.get(&name).filter(|_| base.shape(&name).is_none()) {
                Some(own) => own.to_string(),
                None => name,
            };
            if update.is_optional() && base.shape(&name).is_none() {
                continue;
            }
            let change = weights.weighted(&name, update);
            changes.entry(name).or_default().push(change);
        }
        let known = |name: &str| spec.module_of(name).is_some() || spec.is_unselected_tensor(name);
        let shared = |name: &str| spec.shared_tensor_names().contains(&name);
        for (name, tensor) in tensors.iter().filter(|(name, _)| !known(name) && !shared(name)) {
            let tensor = tensor.shallow_clone();
            if let Some(module) = name.strip_suffix(BASE_LAYER) {
                let changed = format!("{module}.weight");
                // A weight of another shape counts as different, and is refused later together with the updates.
                if !base.get(&changed).is_some_and(|w| equal_values(&w, &tensor)) {
                    let weight = weights.factor(&changed);
                    let replacement = TensorChange::BaseReplacement { tensor, weight };
                    changes.entry(changed).or_default().insert(0, replacement);
                }
            } else if selection.is_saved_whole(name) && !of_kind(name) && !name.contains(".base_layer.") {
                let weight = weights.factor(name);
                changes.entry(name.clone()).or_default().push(TensorChange::Replacement { tensor, weight });
            } else {
                return Err(Error::user(format!(
                    "{}: `{name}` is not {} or part of a module to save",
                    origin.display(),
                    spec.tensor_names().join(", ")
                ))
                .hint("merge the adapter with PEFT's merge_and_unload"));
            }
        }
        Ok(changes)
    }
}

pub(super) fn flatten(changes: BTreeMap<String, Vec<TensorChange>>) -> impl Iterator<Item = (String, TensorChange)> {
    changes.into_iter().flat_map(|(name, list)| list.into_iter().map(move |u| (name.clone(), u)))
}

/// A base's weights with adapters merged into them; tensors are computed one by one on request.
pub struct MergedWeights<'a> {
    base: &'a Weights,
    /// Folder and weights of each adapter.
    parts: Vec<(PathBuf, PartWeights)>,
    plan: MergePlan,
    /// The changes of each tensor, with the position of the adapter.
    changes: BTreeMap<String, Vec<(usize, TensorChange)>>,
}

impl<'a> MergedWeights<'a> {
    /// Adds up the weighted changes of the adapters. See [`MergedWeights::planned`].
    pub fn new(base: &'a Weights, shared: &[&str], parts: &[WeightedAdapter]) -> Result<Self> {
        Self::planned(base, shared, parts, MergePlan::default())
    }

    /// Assigns each change of the adapters to a tensor of the base, to be merged as `plan` says. Fails if the base has no
    /// such tensor or another shape, or if an adapter replaces one of `shared`: weights that embedding and output head share.
    pub fn planned(base: &'a Weights, shared: &[&str], parts: &[WeightedAdapter], plan: MergePlan) -> Result<Self> {
        let mut changes: BTreeMap<String, Vec<(usize, TensorChange)>> = BTreeMap::new();
        for (i, part) in parts.iter().enumerate() {
            let origin = part.folder.join(file::TENSORS);
            for (name, change) in flatten(part.changes(base)?) {
                if shared.contains(&name.as_str()) && !matches!(change, TensorChange::Update { .. }) {
                    return Err(Error::user(format!(
                        "{}: the adapter replaces `{name}`, which embedding and output head share in this model",
                        origin.display()
                    ))
                    .hint("merging it would separate the two: untie the base first, or train without that module"));
                }
                let fits = base.shape(&name).map(|shape| change.fits(shape, base.transposed(&name)));
                if fits != Some(true) {
                    return Err(unfitting(base, &origin, &name, &change.shape()).hint(change.hint()));
                }
                changes.entry(name).or_default().push((i, change));
            }
        }
        let parts = parts.iter().map(|part| (part.folder.clone(), part.weights.clone())).collect();
        Ok(Self { base, parts, plan, changes })
    }

    /// Returns the names of the tensors that change.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }

    /// Returns folder and weights of each adapter.
    pub fn parts(&self) -> &[(PathBuf, PartWeights)] {
        &self.parts
    }

    /// Returns the names of the tensors that an adapter changes.
    pub fn changed_by(&self, part: usize) -> impl Iterator<Item = &str> {
        let changed = self.changes.iter().filter(move |(_, list)| list.iter().any(|(i, _)| *i == part));
        changed.map(|(name, _)| name.as_str())
    }

    /// Returns the number of components `bᵣ aᵣ` of an adapter's change of a tensor. `None` for a table, and if any adapter's
    /// change of the tensor is not just one product of factors.
    pub fn components(&self, name: &str, part: usize) -> Option<usize> {
        let changes = self.changes_of(name);
        let plain = |factors: &LowRankUpdate| !factors.table;
        let all_plain = changes.iter().all(|(_, change)| change.low_rank().is_some_and(plain));
        let each_once = changes.windows(2).all(|two| two[0].0 != two[1].0);
        let (_, own) = changes.iter().find(|(i, _)| *i == part).filter(|_| all_plain && each_once)?;
        Some(own.low_rank()?.a.size()[0] as usize)
    }

    /// Returns the factor of each adapter on its change of a tensor; `None` for one that does not change it.
    pub fn weights_of(&self, name: &str) -> Vec<Option<f64>> {
        let changes = |part: usize| self.changes_of(name).iter().any(|(i, _)| *i == part);
        self.parts.iter().enumerate().map(|(i, (_, weights))| changes(i).then(|| weights.mean(name))).collect()
    }

    /// Returns the mean factor of an adapter over the tensors that it changes.
    pub fn mean_weight(&self, part: usize) -> f64 {
        let weights = &self.parts[part].1;
        weights.common().unwrap_or_else(|| {
            let all: Vec<f64> = self.changed_by(part).map(|name| weights.mean(name)).collect();
            all.iter().sum::<f64>() / all.len().max(1) as f64
        })
    }

    /// Returns how they are merged.
    pub fn plan(&self) -> &MergePlan {
        &self.plan
    }

    /// Returns the base.
    pub(super) fn base(&self) -> &Weights {
        self.base
    }

    /// Returns the changes of a tensor with the positions of the adapters.
    pub(super) fn changes_of(&self, name: &str) -> &[(usize, TensorChange)] {
        self.changes.get(name).map_or(&[], Vec::as_slice)
    }

    fn base_tensor(&self, name: &str) -> Result<Tensor> {
        self.base.get(name).ok_or_else(|| Error::bug(format!("merge: the base has no tensor `{name}`")))
    }

    /// Returns the change of a tensor by each adapter that changes it. Fails for changes that are not finite.
    pub fn deltas(&self, name: &str) -> Result<Vec<WeightedDelta>> {
        let _no_grad = tch::no_grad_guard();
        let (base, transposed) = (self.base_tensor(name)?, self.base.transposed(name));
        let mut deltas = Vec::new();
        for changes in self.changes_of(name).chunk_by(|(one, _), (two, _)| one == two) {
            let part = changes[0].0;
            let delta = match changes {
                [(_, change)] if change.low_rank().is_some() => {
                    let LowRankUpdate { a, b, scale, .. } = change.low_rank().expect("just asked");
                    Delta::Factors { a: a.to_kind(Kind::Float) * *scale, b: b.to_kind(Kind::Float) }
                }
                changes => {
                    let mut sum = base.to_kind(Kind::Float).zeros_like();
                    changes.iter().for_each(|(_, change)| change.add_times(&mut sum, &base, 1.0, transposed));
                    Delta::Dense(if transposed { sum.tr().contiguous() } else { sum })
                }
            };
            if !delta.is_finite() {
                return Err(Error::user(format!(
                    "{}: the change of `{name}` has NaN or infinite values",
                    self.parts[part].0.display()
                ))
                .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint"));
            }
            let (weight, density) = (self.parts[part].1.factor(name), self.plan.density(part));
            deltas.push(WeightedDelta { part, delta, weight, density });
        }
        Ok(deltas)
    }

    /// Returns what the plan makes of the changes of a tensor, before anything is reduced. Fails if the plan merges factors and
    /// the changes have none, or of unlike ranks.
    pub fn merged(&self, name: &str, deltas: &[WeightedDelta]) -> Result<Delta> {
        if self.plan.named.way == MergeWay::Factors {
            return self.merged_factors(name);
        }
        Ok(on_one_thread(|| merging::method::merge(name, deltas, &self.plan.rule)))
    }

    fn merged_factors(&self, name: &str) -> Result<Delta> {
        let refuse = |why: String| {
            Err(Error::user(format!("`{name}`: {why}, and {} merges factors of equal rank", self.plan.named.name))
                .hint("a method on the changes themselves takes adapters of any kind and rank, e.g. linear or ties"))
        };
        let mut factors: Vec<FactorPart> = Vec::new();
        for (part, change) in self.changes_of(name) {
            let Some(LowRankUpdate { a, b, scale, .. }) = change.low_rank() else {
                return refuse(format!("{} has no factors for it", self.parts[*part].0.display()));
            };
            factors.push(FactorPart {
                part: *part,
                a: a.to_kind(Kind::Float),
                b: b.to_kind(Kind::Float),
                weight: scale * self.parts[*part].1.factor(name),
                density: self.plan.density(*part),
            });
        }
        let ranks: Vec<String> = factors.iter().map(|f| f.a.size()[0].to_string()).collect();
        if ranks.iter().any(|rank| *rank != ranks[0]) {
            return refuse(format!("the adapters have ranks {}", ranks.join(", ")));
        }
        Ok(on_one_thread(|| merging::factors::merge_factors(name, &factors, &self.plan.rule)))
    }

    /// Returns a merged tensor: in float32 if it changes, otherwise the base's as it is on disk. Fails for NaN or
    /// infinite results.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let base = self.base_tensor(name)?;
        let transposed = self.base.transposed(name);
        let merged = match self.changes_of(name) {
            [] => return Ok(base),
            _ if !self.plan.is_sum() => {
                let change = self.merged(name, &self.deltas(name)?)?.dense();
                base.to_kind(Kind::Float) + if transposed { change.tr() } else { change }
            }
            // A complete replacement needs no arithmetic, which could round.
            [(_, TensorChange::Update { update, weight })] if *weight == 1.0 && update.replacement().is_some() => {
                update.replacement().expect("just asked").to_kind(Kind::Float)
            }
            [(_, TensorChange::Replacement { tensor, weight })] if *weight == 1.0 => tensor.to_kind(Kind::Float),
            changes => {
                let mut sum = base.to_kind(Kind::Float).copy();
                changes.iter().for_each(|(_, c)| c.add(&mut sum, &base, transposed));
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
