//! Chooses the method of a merge and measures what it has to know of a whole tensor.

use super::blocks::TensorParts;
use super::spec::{ModelMethod, ParameterValues};
use super::{linear, model_stock, sce, spherical, task_arithmetic};
use crate::error::Result;
use std::ops::Range;

/// A merged tensor that is computed block by block, by several threads.
pub trait MergedBlocks: Sync {
    /// Merges rows of the parts into `merged`; all have their entries in row-major order. The rows must be those of a block of
    /// the tensor's [`TensorBlocks`](super::TensorBlocks).
    fn block(&self, rows: &Range<i64>, parts: &[&[f32]], merged: &mut [f32]);
}

/// Prepares the merge of a tensor. Reads it as often as the method needs. Fails if reading does, or if the method has no result
/// for these tensors.
pub fn prepare<'a>(
    method: ModelMethod,
    parts: &TensorParts<'a>,
    values: &ParameterValues,
) -> Result<Box<dyn MergedBlocks + 'a>> {
    match method {
        ModelMethod::Linear => Ok(linear::weighted_mean(parts, values)),
        ModelMethod::Passthrough => Ok(linear::passthrough(parts, values)),
        ModelMethod::Slerp => spherical::slerp(parts, values),
        ModelMethod::Nuslerp => spherical::nuslerp(parts, values),
        ModelMethod::Multislerp => spherical::multislerp(parts, values),
        ModelMethod::Karcher => spherical::karcher(parts, values),
        ModelMethod::ModelStock => model_stock::model_stock(parts, values),
        ModelMethod::Sce => sce::sce(parts, values),
        ModelMethod::TaskArithmetic
        | ModelMethod::Ties
        | ModelMethod::DareLinear
        | ModelMethod::DareTies
        | ModelMethod::Della
        | ModelMethod::DellaLinear
        | ModelMethod::Breadcrumbs
        | ModelMethod::BreadcrumbsTies => task_arithmetic::task_arithmetic(method, parts, values),
    }
}
