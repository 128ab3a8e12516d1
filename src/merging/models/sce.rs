//! SCE (Wan et al. 2024, arXiv 2408.07990, section 3.3): selects the entries whose changes vary most between the models,
//! calculates a weight for each change from its energy, and erases entries whose sign is not the elected one.

use super::blocks::{TensorParts, sum};
use super::prepare::MergedBlocks;
use super::select::Largest;
use super::spec::ParameterValues;
use crate::error::{Error, Result};
use crate::merging::ties::{MajoritySign, elected_sign};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Changes with less energy than this together have equal weights, as in mergekit.
const SMALLEST_ENERGY: f64 = 1e-6;

struct SelectedChanges {
    base: usize,
    others: Vec<usize>,
    /// The entries that are selected; `None`: all of them.
    selected: Option<Largest>,
    weights: Vec<f64>,
}

/// Prepares the merge of the changes of a base.
pub(super) fn sce(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks>> {
    let base = parts.base.ok_or_else(|| Error::bug("sce without a base"))?;
    let others = parts.others();
    let share = values.number("select_topk");
    let selected = match share {
        share if share >= 1.0 => None,
        share if share <= 0.0 => {
            Some(Largest::find(parts.blocks, |rows| Ok(variance(&parts.read_changes(&rows)?)), |_| 0)?)
        }
        share => {
            let count = |varying: i64| (varying as f64 * share) as i64;
            Some(Largest::find(parts.blocks, |rows| Ok(variance(&parts.read_changes(&rows)?)), count)?)
        }
    };
    let mut merged = SelectedChanges { base, others, selected, weights: Vec::new() };
    let mut energies = vec![0.0; merged.others.len()];
    for rows in parts.blocks.blocks() {
        for (energy, change) in energies.iter_mut().zip(merged.changes(&rows, &parts.read_all(&rows)?)) {
            *energy += sum(&change.square());
        }
    }
    let means: Vec<f64> = energies.iter().map(|energy| energy / parts.blocks.entries() as f64).collect();
    let all: f64 = means.iter().sum();
    merged.weights = match all < SMALLEST_ENERGY {
        true => vec![1.0 / means.len() as f64; means.len()],
        false => means.iter().map(|mean| mean / all).collect(),
    };
    Ok(Box::new(merged))
}

/// Returns the variance of each entry over the changes.
fn variance(changes: &[Tensor]) -> Tensor {
    Tensor::stack(changes, 0).var_dim([0i64].as_slice(), false, false)
}

impl SelectedChanges {
    /// Returns a block of the changes, with the entries that are not selected set to zero.
    fn changes(&self, rows: &Range<i64>, parts: &[Tensor]) -> Vec<Tensor> {
        let changes: Vec<Tensor> = self.others.iter().map(|part| &parts[*part] - &parts[self.base]).collect();
        match &self.selected {
            None => changes,
            Some(selected) => {
                let mask = selected.mask(rows, &variance(&changes));
                changes.into_iter().map(|change| change * &mask).collect()
            }
        }
    }
}

impl MergedBlocks for SelectedChanges {
    fn block(&self, rows: &Range<i64>, parts: &[Tensor]) -> Tensor {
        let base = &parts[self.base];
        if self.others.is_empty() {
            return base.shallow_clone();
        }
        let changes = self.changes(rows, parts);
        let sign = elected_sign(&changes, MajoritySign::Total);
        let mut sum = base.zeros_like();
        let mut divisor = base.zeros_like();
        for (change, weight) in changes.iter().zip(&self.weights) {
            let counted = change.sign().eq_tensor(&sign).to_kind(Kind::Float) * *weight;
            sum += change * &counted;
            divisor += counted;
        }
        sum / divisor.clamp_min(1e-6) + base
    }
}
