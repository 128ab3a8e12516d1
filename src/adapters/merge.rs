//! Merges adapters into a base's weights. Needs only names and tensors, no model.
//!
//! All sums are in float32, one tensor at a time; the caller casts the result once. An adapter of weight w adds w times
//! the update of its kind, and a module saved in full adds `w · (W - base)`.

use super::base_layer::BASE_LAYER;
use super::file::{self, AdapterFile};
use super::update::WeightUpdate;
use crate::error::{Error, Result};
use crate::nn::Weights;
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
    /// from the base's, replacing it is the first change, as in PEFT. Fails for tensors that its kind does not know, and
    /// for those that do not fit together.
    pub(super) fn changes(&self, base: &Weights) -> Result<BTreeMap<String, Vec<TensorChange>>> {
        let (spec, tensors, weight) = (&self.file.spec, &self.file.tensors, self.weight);
        let origin = self.folder.join(file::TENSORS);
        let selection = spec.selection().map_err(|e| e.context(self.folder.join(file::CONFIG).display()))?;
        let of_kind = |name: &str| name.contains(&format!(".{}", spec.tensor_prefix()));
        let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
        let mut changes: BTreeMap<String, Vec<TensorChange>> = BTreeMap::new();
        for (name, update) in spec.updates_on(base, &modules, tensors, &origin)? {
            if update.is_optional() && base.shape(&name).is_none() {
                continue;
            }
            changes.entry(name).or_default().push(TensorChange::Update { update, weight });
        }
        let known = |name: &str| spec.module_of(name).is_some() || spec.is_unselected_tensor(name);
        let shared = |name: &str| spec.shared_tensor_names().contains(&name);
        for (name, tensor) in tensors.iter().filter(|(name, _)| !known(name) && !shared(name)) {
            let tensor = tensor.shallow_clone();
            if let Some(module) = name.strip_suffix(BASE_LAYER) {
                let changed = format!("{module}.weight");
                // A weight of another shape counts as different, and is refused later together with the updates.
                if !base.get(&changed).is_some_and(|w| equal_values(&w, &tensor)) {
                    let replacement = TensorChange::BaseReplacement { tensor, weight };
                    changes.entry(changed).or_default().insert(0, replacement);
                }
            } else if selection.is_saved_whole(name) && !of_kind(name) && !name.contains(".base_layer.") {
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

/// Returns true if two tensors have equal values, whatever their dtypes.
pub(super) fn equal_values(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.to_kind(Kind::Float).equal(&b.to_kind(Kind::Float))
}

/// The change that one adapter makes to one tensor, and the adapter's weight in the merge.
pub(super) enum TensorChange {
    /// Adds the update of the adapter's kind.
    Update { update: Box<dyn WeightUpdate>, weight: f64 },
    /// Replaces a module that was trained in full.
    Replacement { tensor: Tensor, weight: f64 },
    /// Replaces the base weight by the different one that an update was trained on.
    BaseReplacement { tensor: Tensor, weight: f64 },
}

impl TensorChange {
    /// Adds the change to `sum`, which starts as `base` in float32. `transposed`: both are stored as (in, out).
    pub(super) fn add(&self, sum: &mut Tensor, base: &Tensor, transposed: bool) {
        match self {
            TensorChange::Update { update, weight } => update.add(sum, base, *weight, transposed),
            TensorChange::Replacement { tensor, weight } | TensorChange::BaseReplacement { tensor, weight } => {
                *sum += (tensor.to_kind(Kind::Float) - base.to_kind(Kind::Float)) * *weight;
            }
        }
    }

    fn fits(&self, shape: &[i64], transposed: bool) -> bool {
        match self {
            TensorChange::Update { update, .. } => update.fits(shape, transposed),
            TensorChange::Replacement { tensor, .. } | TensorChange::BaseReplacement { tensor, .. } => {
                shape == tensor.size()
            }
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            TensorChange::Update { update, .. } => update.hint(),
            _ => "was the adapter trained on another base?",
        }
    }

    fn shape(&self) -> String {
        match self {
            TensorChange::Update { update, .. } => update.shape(),
            TensorChange::Replacement { tensor, .. } | TensorChange::BaseReplacement { tensor, .. } => {
                format!("{:?}", tensor.size())
            }
        }
    }
}

/// A base's weights with adapters merged into them; tensors are computed one by one on request.
pub struct MergedWeights<'a> {
    base: &'a Weights,
    changes: BTreeMap<String, Vec<TensorChange>>,
}

impl<'a> MergedWeights<'a> {
    /// Assigns each change of the adapters to a tensor of the base. Fails if the base has no such tensor or another
    /// shape, or if an adapter replaces one of `shared`: weights that embedding and output head share.
    pub fn new(base: &'a Weights, shared: &[&str], parts: &[WeightedAdapter]) -> Result<Self> {
        let mut changes: BTreeMap<String, Vec<TensorChange>> = BTreeMap::new();
        for part in parts {
            let origin = part.folder.join(file::TENSORS);
            for (name, change) in flatten(part.changes(base)?) {
                if shared.contains(&name.as_str()) && !matches!(change, TensorChange::Update { .. }) {
                    return Err(Error::user(format!(
                        "{}: the adapter replaces `{name}`, which embedding and output head share in this model",
                        origin.display()
                    ))
                    .hint("merging it would separate the two: untie the base first, or train without that module"));
                }
                match base.shape(&name) {
                    Some(shape) if change.fits(shape, base.transposed(&name)) => {}
                    found => {
                        let found =
                            found.map_or("the base has no such tensor".into(), |s| format!("the base has {s:?}"));
                        return Err(Error::user(format!(
                            "{}: the update of `{name}` has shape {}, but {found}",
                            origin.display(),
                            change.shape()
                        ))
                        .hint(change.hint()));
                    }
                }
                changes.entry(name).or_default().push(change);
            }
        }
        Ok(Self { base, changes })
    }

    /// Returns the names of the tensors that change.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }

    /// Returns a merged tensor: in float32 if it changes, otherwise the base's as it is on disk. Fails for NaN or
    /// infinite results.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let base = self.base.get(name).ok_or_else(|| Error::bug(format!("merge: the base has no tensor `{name}`")))?;
        let merged = match self.changes.get(name).map(Vec::as_slice) {
            None => return Ok(base),
            // A complete replacement needs no arithmetic, which could round.
            Some([TensorChange::Update { update, weight }]) if *weight == 1.0 && update.replacement().is_some() => {
                update.replacement().expect("just asked").to_kind(Kind::Float)
            }
            Some([TensorChange::Replacement { tensor, weight }]) if *weight == 1.0 => tensor.to_kind(Kind::Float),
            Some(changes) => {
                let mut sum = base.to_kind(Kind::Float).copy();
                changes.iter().for_each(|c| c.add(&mut sum, &base, self.base.transposed(name)));
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
