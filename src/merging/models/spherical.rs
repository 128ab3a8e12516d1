//! Interpolation between directions: each part is a point on a sphere, and its norm is interpolated apart from it or scales its
//! direction.
//!
//! All results are linear combinations of the parts. Their factors follow from inner products, so that no intermediate point is
//! computed as a tensor.

use super::blocks::TensorParts;
use super::combination::{Terms, combination};
use super::inner_products::{InnerProducts, Vectors};
use super::prepare::MergedBlocks;
use super::spec::ParameterValues;
use crate::error::{Error, Result};

/// Cosines above this are interpolated linearly by [`slerp`], as in mergekit.
const PARALLEL: f64 = 0.9995;
/// Norms up to this are not divided by.
const SMALLEST_NORM: f64 = 1e-8;

/// Prepares spherical interpolation from the base (`t` = 0) to the other part (`t` = 1); linear if they are nearly parallel.
pub(super) fn slerp<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let base = parts.base.ok_or_else(|| Error::bug("slerp without a base"))?;
    let t = values.number("t");
    combination(parts, Terms::Parts(vec![base, 1 - base]), Vectors::Whole, |products| {
        let norm = |i: usize| Some(products.norm(i)).filter(|norm| *norm > SMALLEST_NORM).unwrap_or(1.0);
        let cosine = (products.of(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
        Ok(if cosine.abs() > PARALLEL { vec![1.0 - t, t] } else { along_the_arc(t, cosine) })
    })
}

/// Prepares spherical interpolation between two parts, or between their changes of a base. The place between them is the share
/// of the second weight. Vectors are the whole tensors, or with `nuslerp_flatten: false` its rows, or its columns with
/// `nuslerp_row_wise: true`: the names are mergekit's.
pub(super) fn nuslerp<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let others = parts.others();
    let weight = |i: usize| values.of(others[i], "weight").unwrap_or(0.0);
    let sum = weight(0) + weight(1);
    let t = if sum.abs() < 1e-6 { 0.5 } else { weight(1) / sum };
    let along = match (values.is("nuslerp_flatten"), values.is("nuslerp_row_wise")) {
        // A tensor with one dimension is one vector in any case.
        _ if parts.blocks.rows == 1 => Vectors::Whole,
        (true, _) => Vectors::Whole,
        (false, true) => Vectors::Columns,
        (false, false) => Vectors::Rows,
    };
    combination(parts, terms(parts), along, |products| {
        let norm = |i: usize| products.norm(i).max(1e-7);
        let cosine = (products.of(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
        // In float32 a cosine this near 1 is 1, which mergekit interpolates linearly.
        let parallel = 1.0 - cosine * cosine <= 1e-12;
        Ok(if parallel { vec![1.0 - t, t] } else { along_the_arc(t, cosine) })
    })
}

/// Returns the factors of two vectors for the point at `t` between them (Shoemake 1985).
fn along_the_arc(t: f64, cosine: f64) -> Vec<f64> {
    let angle = cosine.acos();
    vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}

/// Returns the parts but the base as terms: their changes of it, or themselves if there is none.
fn terms(parts: &TensorParts) -> Terms {
    match parts.base {
        Some(base) => Terms::Changes { base, others: parts.others() },
        None => Terms::Parts(parts.others()),
    }
}

/// Prepares the weighted mean of directions with the weighted mean of norms. mergekit moves from the mean direction along the
/// mean of the tangents there, which is zero but for rounding: the tangents add up to the mean without its part along itself.
///
/// Fails if directions cancel each other.
pub(super) fn multislerp<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let (terms, others) = (terms(parts), parts.others());
    // One part is returned as it is, with or without a base.
    if terms.count() == 1 {
        return combination(parts, Terms::Parts(others), Vectors::Whole, |_| Ok(vec![1.0]));
    }
    let mut weights: Vec<f64> = others.iter().map(|part| values.of(*part, "weight").unwrap_or(0.0)).collect();
    if values.is("normalize_weights") {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let tolerance = values.number("eps");
    combination(parts, terms, Vectors::Whole, |products| {
        let norms: Vec<f64> = (0..products.count()).map(|i| products.norm(i)).collect();
        let directions: Vec<f64> =
            weights.iter().zip(&norms).map(|(weight, norm)| weight / (norm + tolerance)).collect();
        let length = products.square(&directions).max(0.0).sqrt();
        if length < tolerance {
            return match weights.len() {
                2 => Ok(weights.clone()),
                _ => Err(Error::user(format!(
                    "`{}`: the weighted directions of the models cancel each other",
                    parts.name
                ))
                .hint("choose other weights")),
            };
        }
        let norm: f64 = weights.iter().zip(&norms).map(|(weight, norm)| weight * norm).sum();
        Ok(directions.iter().map(|factor| factor * norm / length).collect())
    })
}

/// Prepares the Karcher mean of the directions of all parts, with equal weights, and with the mean of their norms: the point on
/// the sphere whose tangents to all directions add up to zero, found by moving along them (`max_iter` times at most, until their
/// sum is below `tol`).
pub(super) fn karcher<'a>(parts: &TensorParts, values: &ParameterValues) -> Result<Box<dyn MergedBlocks + 'a>> {
    let order: Vec<usize> = (0..parts.count).collect();
    let (steps, tolerance) = (values.number("max_iter") as usize, values.number("tol"));
    combination(parts, Terms::Parts(order), Vectors::Whole, |products| Ok(karcher_factors(products, steps, tolerance)))
}

fn karcher_factors(products: &InnerProducts, steps: usize, tolerance: f64) -> Vec<f64> {
    let count = products.count();
    if count == 1 {
        return vec![1.0];
    }
    let norms: Vec<f64> = (0..count).map(|i| products.norm(i)).collect();
    let counted: Vec<usize> = (0..count).filter(|i| norms[*i] > tolerance).collect();
    if counted.is_empty() {
        return vec![0.0; count];
    }
    let share = 1.0 / counted.len() as f64;
    let units = products.divided(&norms.iter().map(|norm| if *norm > 0.0 { *norm } else { 1.0 }).collect::<Vec<_>>());
    let unit = |i: usize| -> Vec<f64> { (0..count).map(|j| if i == j { 1.0 } else { 0.0 }).collect() };
    let length = |factors: &[f64]| units.square(factors).max(0.0).sqrt();
    let divided = |factors: &[f64], by: f64| -> Vec<f64> { factors.iter().map(|factor| factor / by).collect() };

    let start: Vec<f64> = (0..count).map(|i| if counted.contains(&i) { share } else { 0.0 }).collect();
    let mut mean = match length(&start) {
        norm if norm < tolerance => unit(counted[0]),
        norm => divided(&start, norm),
    };
    for _ in 0..steps {
        let mut tangent = vec![0.0; count];
        for i in &counted {
            let cosine = units.between(&mean, &unit(*i)).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tolerance {
                continue;
            }
            let factor = share * angle / angle.sin();
            tangent[*i] += factor;
            tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= factor * cosine * m);
        }
        let norm = length(&tangent);
        if norm < tolerance {
            break;
        }
        let moved: Vec<f64> = mean.iter().zip(&tangent).map(|(m, t)| norm.cos() * m + norm.sin() * t / norm).collect();
        mean = match length(&moved) {
            norm if norm > tolerance => divided(&moved, norm),
            _ => moved,
        };
    }
    let scale = norms.iter().sum::<f64>() / count as f64;
    mean.iter().zip(&norms).map(|(m, norm)| if *norm > 0.0 { scale * m / norm } else { 0.0 }).collect()
}
