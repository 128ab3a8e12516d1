//! The weighted sum of the changes of a base (task arithmetic, Ilharco et al. 2022, arXiv 2212.04089), of some of their entries
//! alone (`sparsify`), and of those alone that have an elected sign (TIES, arXiv 2306.01708).

use super::blocks::{Buffer, TensorParts, kernels, slices};
use super::prepare::MergedBlocks;
use super::sparsify::Sparse;
use super::spec::{ModelMethod, ParameterValues};
use crate::error::{Error, Result};
use crate::native::merging::ElectedMean;
use std::ops::Range;

/// A sum of changes.
struct ChangeSum<'a> {
    parts: TensorParts<'a>,
    base: usize,
    /// Position, entries that are kept, and weight of each part but the base.
    changes: Vec<(usize, Sparse, f64)>,
    elects: bool,
    normalize: bool,
    lambda: f64,
}

/// Prepares the sum for a method that merges changes.
pub(super) fn task_arithmetic<'a>(
    method: ModelMethod,
    parts: &TensorParts<'a>,
    values: &ParameterValues,
) -> Result<Box<dyn MergedBlocks + 'a>> {
    let base = parts.base.ok_or_else(|| Error::bug(format!("{} without a base", method.name())))?;
    let sparse = Sparse::of_changes(method, parts, values)?;
    let weight = |part: usize| values.of(part, "weight").unwrap_or(0.0);
    let changes = parts.others().into_iter().zip(sparse).map(|(part, sparse)| (part, sparse, weight(part)));
    Ok(Box::new(ChangeSum {
        parts: *parts,
        base,
        changes: changes.collect(),
        elects: method.elects_signs(),
        normalize: values.is("normalize"),
        lambda: values.number("lambda"),
    }))
}

impl MergedBlocks for ChangeSum<'_> {
    fn block(&self, rows: &Range<i64>, parts: &[&[f32]], merged: &mut [f32]) {
        let base = parts[self.base];
        if self.changes.is_empty() {
            merged.copy_from_slice(base);
            return;
        }
        // An election is one of weighted changes; a sum is weighted as it is added up.
        let own_weight = |weight: f64| if self.elects { weight } else { 1.0 };
        let change = |(part, sparse, weight): &(usize, Sparse, f64)| {
            let mut change = Buffer::change(parts[*part], base);
            sparse.apply(&self.parts, rows, &mut change, own_weight(*weight));
            change
        };
        let changes: Vec<Buffer> = self.changes.iter().map(change).collect();
        let weights = self.changes.iter().map(|(.., weight)| *weight);
        if self.elects {
            let weights: Vec<f32> = weights.map(|weight| weight as f32).collect();
            let mean = ElectedMean { normalise: self.normalize, least: f32::NEG_INFINITY, lambda: self.lambda as f32 };
            kernels().elect(&slices(&changes), &vec![1.0; changes.len()], &weights, mean, base, merged);
            return;
        }
        let sum: f64 = weights.clone().sum();
        let divisor = if self.normalize && sum.abs() >= 1e-8 { sum } else { 1.0 };
        let factors: Vec<f32> = weights.map(|weight| (weight * self.lambda / divisor) as f32).collect();
        kernels().combine(&slices(&changes), &factors, Some(base), merged);
    }
}
