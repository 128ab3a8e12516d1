//! SCE (Wan et al. 2024, arXiv 2408.07990, section 3.3): selects the entries whose changes vary most between the models,
//! calculates a weight for each change from its energy, and erases entries whose sign is not the elected one.

use super::blocks::{Buffer, TensorParts, kernels, slices};
use super::prepare::MergedBlocks;
use super::select::{BlockVectors, Largest, Wanted, keep};
use super::spec::ParameterValues;
use crate::error::{Error, Result};
use crate::native::merging::ElectedMean;
use std::ops::Range;

/// Changes with less energy than this together have equal weights, as in mergekit.
const SMALLEST_ENERGY: f64 = 1e-6;

struct SelectedChanges {
    base: usize,
    others: Vec<usize>,
    /// The entries that are selected; `None`: all of them.
    selected: Option<Largest>,
    weights: Vec<f32>,
}

/// Prepares the merge of the changes of a base.
pub(super) fn sce<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let base = parts.base.ok_or_else(|| Error::bug("sce without a base"))?;
    let share = values.number("select_topk");
    let read = |rows: &Range<i64>| Ok(vec![variance(&slices(&parts.read_changes(rows)?))]);
    let varying = BlockVectors { blocks: parts.blocks, threads: parts.threads, count: 1, read: &read };
    let selected = match share {
        share if share >= 1.0 || parts.others().is_empty() => None,
        share => {
            // A share of the entries that vary at all.
            let count = if share <= 0.0 { 0 } else { (varying.nonzero()?[0] as f64 * share) as i64 };
            varying.largest(&[Wanted { vector: 0, count }])?.pop()
        }
    };
    let mut merged = SelectedChanges { base, others: parts.others(), selected, weights: Vec::new() };
    let mut energies = vec![0.0; merged.others.len()];
    let measure = |(): &mut (), rows: &Range<i64>| {
        let block = parts.read_all(rows)?;
        let square = |change: &Buffer| {
            let mut square = [0.0];
            kernels().products(&[change], &mut square);
            square[0]
        };
        Ok(merged.changes(rows, &slices(&block)).iter().map(square).collect::<Vec<f64>>())
    };
    parts.blocks.each(
        parts.threads,
        || (),
        measure,
        |found| {
            energies.iter_mut().zip(found).for_each(|(energy, found)| *energy += found);
            Ok(())
        },
    )?;
    let means: Vec<f64> = energies.iter().map(|energy| energy / parts.blocks.entries() as f64).collect();
    let all: f64 = means.iter().sum();
    merged.weights = match all < SMALLEST_ENERGY {
        true => vec![(1.0 / means.len() as f64) as f32; means.len()],
        false => means.iter().map(|mean| (mean / all) as f32).collect(),
    };
    Ok(Box::new(merged))
}

/// Returns the variance of each entry over the changes.
fn variance(changes: &[&[f32]]) -> Buffer {
    let mut found = Buffer::of(changes[0].len());
    let count = changes.len() as f64;
    for (i, found) in found.iter_mut().enumerate() {
        let entries = || changes.iter().map(|change| f64::from(change[i]));
        let mean = entries().sum::<f64>() / count;
        *found = (entries().map(|entry| (entry - mean).powi(2)).sum::<f64>() / count) as f32;
    }
    found
}

impl SelectedChanges {
    /// Returns a block of the changes, with the entries that are not selected set to zero.
    fn changes(&self, rows: &Range<i64>, parts: &[&[f32]]) -> Vec<Buffer> {
        let mut changes: Vec<Buffer> =
            self.others.iter().map(|part| Buffer::change(parts[*part], parts[self.base])).collect();
        if let Some(selected) = &self.selected {
            let mut chosen = variance(&slices(&changes));
            // An entry that is selected keeps its variance, which is not zero.
            keep(selected, None, rows.start, &mut chosen, 1.0);
            for change in &mut changes {
                change
                    .iter_mut()
                    .zip(chosen.iter())
                    .filter(|(_, variance)| **variance == 0.0)
                    .for_each(|(c, _)| *c = 0.0);
            }
        }
        changes
    }
}

impl MergedBlocks for SelectedChanges {
    fn block(&self, rows: &Range<i64>, parts: &[&[f32]], merged: &mut [f32]) {
        let base = parts[self.base];
        if self.others.is_empty() {
            merged.copy_from_slice(base);
            return;
        }
        let changes = self.changes(rows, parts);
        let mean = ElectedMean { normalise: true, least: 1e-6, lambda: 1.0 };
        kernels().elect(&slices(&changes), &self.weights, &self.weights, mean, base, merged);
    }
}
