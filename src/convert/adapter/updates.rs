//! The changes that an adapter makes, as far as they are known: without a base, those that are products of two factors.

use crate::adapters::file;
use crate::adapters::merging::{MergedWeights, WeightedAdapter};
use crate::adapters::update::WeightUpdate;
use crate::convert::merge::adapters::open_base;
use crate::error::{Error, Result};
use crate::merging::Delta;
use crate::nn::Weights;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// An adapter from disk, and the base that it is looked at over, if one is given.
pub(super) struct OpenAdapter {
    pub part: WeightedAdapter,
    base: Option<Weights>,
}

impl OpenAdapter {
    /// Reads the adapter in `folder`, and maps the base's weights.
    pub fn read(folder: &Path, base: Option<&Path>) -> Result<Self> {
        let part = WeightedAdapter::read(folder, 1.0)?;
        let open = |base: &Path| open_base(base, std::slice::from_ref(&part)).map(|(_, weights, _)| weights);
        let base = base.map(open).transpose()?;
        Ok(Self { part, base })
    }

    /// Returns the changes that the adapter makes. Fails for tensors that do not fit together or do not fit the base.
    pub fn changes(&self) -> Result<KnownChanges<'_>> {
        if let Some(base) = self.base.as_ref().filter(|_| self.part.file.spec.why_not_merged().is_none()) {
            return Ok(KnownChanges::OverBase(MergedWeights::new(base, &[], std::slice::from_ref(&self.part))?));
        }
        let (spec, tensors) = (&self.part.file.spec, &self.part.file.tensors);
        if spec.why_not_merged().is_some() {
            return Ok(KnownChanges::Alone(BTreeMap::new()));
        }
        let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
        if spec.shared_tensor_names().iter().any(|name| !tensors.contains_key(*name)) {
            // What modules share is made from the base's sizes.
            return Ok(KnownChanges::Alone(modules.iter().map(|m| (format!("{m}.weight"), None)).collect()));
        }
        let updates = spec.updates(&modules, tensors, &self.part.folder.join(file::TENSORS))?;
        Ok(KnownChanges::Alone(updates.into_iter().map(|(name, update)| (name, Some(update))).collect()))
    }
}

/// The changes of an adapter: all of them over a base; without one, those that do not depend on it.
pub(super) enum KnownChanges<'a> {
    OverBase(MergedWeights<'a>),
    Alone(BTreeMap<String, Option<Box<dyn WeightUpdate>>>),
}

impl KnownChanges<'_> {
    /// Returns the names of the tensors that change.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::OverBase(merge) => merge.changed().collect(),
            Self::Alone(updates) => updates.keys().map(String::as_str).collect(),
        }
    }

    /// Returns the change of a tensor; `None` if it is not changed, or if the change depends on a base that is not given.
    /// Fails for a change that is not finite.
    pub fn get(&self, name: &str) -> Result<Option<Delta>> {
        let _no_grad = tch::no_grad_guard();
        match self {
            Self::OverBase(merge) if merge.changed().all(|n| n != name) => Ok(None),
            Self::OverBase(merge) => Ok(merge.deltas(name)?.pop().map(|change| change.delta)),
            Self::Alone(updates) => {
                let Some(update) = updates.get(name).and_then(Option::as_ref) else { return Ok(None) };
                let wide = |t: &Tensor| t.to_kind(Kind::Float);
                let delta = match (update.low_rank(), update.addition()) {
                    (Some(factors), _) => Delta::Factors { a: wide(&factors.a) * factors.scale, b: wide(&factors.b) },
                    (None, Some(change)) => Delta::Dense(wide(change)),
                    (None, None) => return Ok(None),
                };
                match delta.is_finite() {
                    true => Ok(Some(delta)),
                    false => Err(Error::user(format!("the change of `{name}` has NaN or infinite values"))
                        .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint")),
                }
            }
        }
    }
}
