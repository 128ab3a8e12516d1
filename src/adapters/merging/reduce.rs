//! Writes merged changes of any kind as one LoRA: each matrix as the product of the largest singular values of its change.

use super::combine::{combined_spec, common_base_name};
use super::merged_weights::{MergedWeights, WeightedAdapter};
use crate::adapters::file::AdapterFile;
use crate::adapters::lora;
use crate::adapters::spec::AdapterSpec;
use crate::adapters::update::LowRankUpdate;
use crate::error::{Error, Result};
use crate::merging::{Comparison, Delta, Truncation, on_one_thread, svd};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tch::Kind;

/// What a merge does to one tensor of the base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightReport {
    /// Name of the tensor.
    pub name: String,
    /// The factor on the change of each adapter; `null` for one that does not change the tensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<Option<f64>>,
    /// How far the adapters' changes agree.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// Rank of the written product; `null` for a change that is not written as one.
    pub rank: Option<i64>,
    /// The share of the merged change's energy that is written.
    pub energy_kept: f64,
}

/// Compares the changes of every tensor that the merge changes, and reports that nothing is reduced.
pub fn compare(merge: &MergedWeights, mut done: impl FnMut()) -> Result<Vec<WeightReport>> {
    let report = |name: &str| {
        let deltas = merge.deltas(name)?;
        let merged = merge.merged(name, &deltas)?;
        done();
        Ok(WeightReport {
            name: name.to_string(),
            weights: merge.weights_of(name),
            comparison: on_one_thread(|| Comparison::between(merge.parts().len(), &deltas, &merged)),
            rank: None,
            energy_kept: 1.0,
        })
    };
    merge.changed().map(report).collect()
}

/// Returns the merged changes as one LoRA, with a report on every tensor, one tensor in memory at a time. A matrix whose
/// change is a product already is written as that, unless the plan reduces it. Vectors, and matrices that every adapter saves
/// in full, are saved in full. `done` is called after each tensor.
///
/// Fails if no rank is known, and for a vector that belongs to an adapted module.
pub fn as_lora(
    merge: &MergedWeights,
    parts: &[WeightedAdapter],
    mut done: impl FnMut(),
) -> Result<(AdapterFile, Vec<WeightReport>)> {
    let _no_grad = tch::no_grad_guard();
    let (base, mut reports, mut tensors) = (merge.base(), Vec::new(), BTreeMap::new());
    let (mut ranks, mut saved) = (BTreeMap::new(), BTreeSet::new());
    for name in merge.changed() {
        let deltas = merge.deltas(name)?;
        let merged = merge.merged(name, &deltas)?;
        let comparison = on_one_thread(|| Comparison::between(merge.parts().len(), &deltas, &merged));
        let module = name.strip_suffix(".weight").filter(|_| merged.is_matrix());
        let whole = merge.changes_of(name).iter().all(|(_, change)| change.is_saved_whole());
        let (mut rank, mut energy_kept) = (None, 1.0);
        match module.filter(|_| !whole) {
            Some(module) => {
                let ([a, b], energy) = reduced(merge, name, merged)?;
                (rank, energy_kept) = (Some(a.size()[0]), energy);
                ranks.insert(module.to_string(), a.size()[0]);
                let table = merge.changes_of(name).iter().any(|(_, change)| change.is_table());
                tensors.extend(lora::factors(module, LowRankUpdate { a, b, scale: 1.0, table }));
            }
            None => {
                saved.insert(name.rsplit_once('.').map_or(name, |(module, _)| module).to_string());
            }
        }
        let weights = merge.weights_of(name);
        reports.push(WeightReport { name: name.to_string(), weights, comparison, rank, energy_kept });
        done();
    }
    if let Some(module) = saved.iter().find(|module| ranks.contains_key(*module)) {
        return Err(Error::user(format!(
            "`{module}`: its weight has a low-rank update and its bias is changed as well"
        ))
        .hint("no LoRA can hold both; merge into a model instead: leave out --as adapter"));
    }
    for name in saved.iter().flat_map(|module| ["weight", "bias"].map(|t| format!("{module}.{t}"))) {
        if base.shape(&name).is_some() {
            tensors.insert(name.clone(), merge.tensor(&name)?.to_kind(Kind::Float));
        }
    }
    let tie = parts.iter().all(|part| part.file.spec.asks_to_tie());
    let spec = AdapterSpec::Lora(combined_spec(base, &ranks, saved, tie));
    Ok((AdapterFile { spec, base: common_base_name(parts), tensors, tables: BTreeMap::new() }, reports))
}

/// Returns A (R, in) and B (out, R) of a merged change, and the share of its energy that they keep. Fails if the product is
/// further from the change than that share says.
fn reduced(merge: &MergedWeights, name: &str, merged: Delta) -> Result<([tch::Tensor; 2], f64)> {
    let to = match (merge.plan().truncation, &merged) {
        (None, Delta::Factors { a, b }) if merge.plan().named.way != super::plan::MergeWay::Reduced => {
            return Ok(([a.shallow_clone(), b.shallow_clone()], 1.0));
        }
        (Some(to), _) => to,
        (None, _) => Truncation::Rank(usual_rank(merge, name)?),
    };
    on_one_thread(|| {
        let reduced = svd::truncate(&merged, to);
        let whole = merged.dot(&merged);
        let lost = Delta::sum(&[merged, reduced.delta().times(-1.0)]);
        let error = (lost.dot(&lost) - (1.0 - reduced.energy) * whole).abs();
        // Of float32 numbers: 1e-4 of the energy is far above rounding and far below one singular value too few.
        if error.is_nan() || error > 1e-4 * whole {
            return Err(Error::bug(format!(
                "`{name}`: its reduction loses another energy than its singular values say"
            )));
        }
        Ok(([reduced.a, reduced.b], reduced.energy))
    })
}

/// Returns the largest rank that an adapter has, as PEFT does. Fails if none has one.
fn usual_rank(merge: &MergedWeights, name: &str) -> Result<i64> {
    let ranks = merge.changed().flat_map(|n| merge.changes_of(n)).filter_map(|(_, change)| change.low_rank());
    ranks.map(|factors| factors.a.size()[0]).max().ok_or_else(|| {
        Error::user(format!("the change of `{name}` has to be reduced, and none of the adapters has a rank"))
            .hint("give one: --rank N, or --energy SHARE")
    })
}
