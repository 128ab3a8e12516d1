//! The weighted mean of the parts (Wortsman et al. 2022, arXiv 2203.05482), and one part alone.

use super::blocks::TensorParts;
use super::combination::{Combination, Terms};
use super::inner_products::{PartFactors, Vectors};
use super::prepare::MergedBlocks;
use super::spec::ParameterValues;

/// Prepares `Σ wᵢ xᵢ`, divided by `Σ wᵢ` if the weights are normalised.
pub(super) fn weighted_mean<'a>(parts: &TensorParts, values: &ParameterValues) -> Box<dyn MergedBlocks + 'a> {
    let order: Vec<usize> = (0..parts.count).collect();
    let weights: Vec<f64> = order.iter().map(|part| values.of(*part, "weight").unwrap_or(0.0)).collect();
    let divisor = if values.is("normalize") { weights.iter().sum() } else { 1.0 };
    sum(parts, order, weights.iter().map(|weight| weight / divisor).collect())
}

/// Prepares the first part times its `scale`, or as it is.
pub(super) fn passthrough<'a>(parts: &TensorParts, values: &ParameterValues) -> Box<dyn MergedBlocks + 'a> {
    sum(parts, vec![0], vec![values.of(0, "scale").unwrap_or(1.0)])
}

fn sum<'a>(parts: &TensorParts, order: Vec<usize>, factors: Vec<f64>) -> Box<dyn MergedBlocks + 'a> {
    let factors = PartFactors::new(Vectors::Whole, vec![factors]);
    Box::new(Combination { factors, terms: Terms::Parts(order), blocks: parts.blocks })
}
