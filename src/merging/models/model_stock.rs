//! Model Stock (Jang et al. 2024, arXiv 2403.19522): the mean of the models, moved towards the base by the angles between their
//! changes (equation 9, with the mean of the cosines of all pairs).

use super::blocks::TensorParts;
use super::combination::{Terms, combination};
use super::inner_products::Vectors;
use super::prepare::MergedBlocks;
use super::spec::ParameterValues;
use crate::error::{Error, Result};
use crate::merging::comparison::pairs;

/// Prepares `t · mean + (1 - t) · base` with `t = N cos θ / (1 + (N - 1) cos θ)`, for the whole tensor or for each row
/// (`filter_wise`). Where the denominator is zero, the base stays.
pub(super) fn model_stock<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let base = parts.base.ok_or_else(|| Error::bug("model_stock without a base"))?;
    let along = if values.is("filter_wise") { Vectors::Rows } else { Vectors::Whole };
    combination(parts, Terms::Changes { base, others: parts.others() }, along, |products| {
        let count = products.count();
        let cosine = |(i, j): (usize, usize)| {
            (products.of(i, j) / (products.norm(i) * products.norm(j)).max(1e-6)).clamp(-1.0, 1.0)
        };
        let mean = pairs(count).map(cosine).sum::<f64>() / pairs(count).count() as f64;
        let divisor = 1.0 + (count - 1) as f64 * mean;
        let t = if divisor.abs() < 1e-6 { 0.0 } else { count as f64 * mean / divisor };
        Ok(vec![t / count as f64; count])
    })
}
