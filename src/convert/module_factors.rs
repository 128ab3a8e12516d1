//! The changes of an adapter as factors of linear layers, for formats that have nothing else.

use crate::adapters::file;
use crate::adapters::merging::WeightedAdapter;
use crate::adapters::update::LowRankUpdate;
use crate::error::{Error, Result};
use crate::nn::Weights;
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// What an adapter changes in one linear layer.
pub(super) struct ModuleFactors {
    /// A (R, in), B (out, R) and the factor on B A.
    pub factors: LowRankUpdate,
    /// The magnitudes (out) of a DoRA.
    pub magnitude: Option<Tensor>,
}

/// Returns the factors of an adapter by module, or the reason why it is more than that. Fails if it does not fit the base, or has
/// numbers that are not finite.
pub(super) fn of(
    part: &WeightedAdapter,
    base: &Weights,
) -> Result<std::result::Result<BTreeMap<String, ModuleFactors>, String>> {
    let (spec, tensors) = (&part.file.spec, &part.file.tensors);
    if let Some(why) = spec.why_not_merged() {
        return Ok(Err(why));
    }
    if spec.has_scalar_head() {
        return Ok(Err("it is a reward model's, and has a head".into()));
    }
    if !part.file.tables.is_empty() {
        return Ok(Err("it brings whole tables of tokens".into()));
    }
    if !spec.shared_tensor_names().is_empty() {
        return Ok(Err("all layers share its projections".into()));
    }
    let modules: BTreeSet<&str> = tensors.keys().filter_map(|name| spec.module_of(name)).collect();
    if let Some(name) = tensors.keys().find(|name| spec.module_of(name).is_none()) {
        return Ok(Err(format!("it has {name}, which is no factor or magnitude of a layer")));
    }
    let mut found = BTreeMap::new();
    for (name, update) in spec.updates_on(base, &modules, tensors, &part.folder.join(file::TENSORS))? {
        let (module, magnitude) = (name.strip_suffix(".weight").unwrap_or(&name), update.magnitudes());
        let Some(factors) = update.low_rank().or(magnitude.map(|(factors, _)| factors)) else {
            return Ok(Err(format!("its change of {name} is no product of two factors")));
        };
        if factors.table {
            return Ok(Err(format!("it adapts {module}, a table of tokens")));
        }
        if !base.shape(&name).is_some_and(|shape| update.fits(shape, base.transposed(&name))) {
            return Err(Error::user(format!(
                "{}: the change of {name} has the shape {}, the base's weight {:?}",
                part.folder.display(),
                update.shape(),
                base.shape(&name)
            ))
            .hint("was the adapter trained on another base? name it with --base"));
        }
        let factors = LowRankUpdate {
            a: factors.a.shallow_clone(),
            b: factors.b.shallow_clone(),
            scale: factors.scale,
            table: false,
        };
        let magnitude = magnitude.map(|(_, m)| m.shallow_clone());
        let finite = |t: &Tensor| t.isfinite().all().int64_value(&[]) != 0;
        let numbers = [Some(&factors.a), Some(&factors.b), magnitude.as_ref()];
        if !numbers.into_iter().flatten().all(finite) {
            return Err(Error::user(format!("{}: the change of {name} is not finite", part.folder.display()))
                .hint("the adapter is damaged, or its training diverged: use an earlier checkpoint"));
        }
        found.insert(module.to_string(), ModuleFactors { factors, magnitude });
    }
    match found.is_empty() {
        true => Ok(Err("it changes no weight".into())),
        false => Ok(Ok(found)),
    }
}
