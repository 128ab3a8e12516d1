//! The weighted sum of the changes of a base (task arithmetic, Ilharco et al. 2022, arXiv 2212.04089), of some of their entries
//! alone (`sparsify`), and of those alone that have an elected sign (TIES, arXiv 2306.01708).

use super::blocks::TensorParts;
use super::prepare::MergedBlocks;
use super::sparsify::Sparse;
use super::spec::{ModelMethod, ParameterValues};
use crate::error::{Error, Result};
use crate::merging::ties::{MajoritySign, elected_sign};
use std::ops::Range;
use tch::{Kind, Tensor};

/// A sum of changes.
struct ChangeSum<'a> {
    base: usize,
    /// Position, entries that are kept, and weight of each part but the base.
    changes: Vec<(usize, Sparse<'a>, f64)>,
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
    let mut changes = Vec::new();
    for part in parts.others() {
        let read = |rows: Range<i64>| Ok((parts.read)(part, rows.clone())? - (parts.read)(base, rows)?);
        let sparse = Sparse::new(method, parts, part, values, &read)?;
        changes.push((part, sparse, values.of(part, "weight").unwrap_or(0.0)));
    }
    Ok(Box::new(ChangeSum {
        base,
        changes,
        elects: method.elects_signs(),
        normalize: values.is("normalize"),
        lambda: values.number("lambda"),
    }))
}

impl MergedBlocks for ChangeSum<'_> {
    fn block(&self, rows: &Range<i64>, parts: &[Tensor]) -> Tensor {
        let base = &parts[self.base];
        if self.changes.is_empty() {
            return base.shallow_clone();
        }
        let weighted: Vec<Tensor> = self
            .changes
            .iter()
            .map(|(part, sparse, weight)| sparse.of(rows, &(&parts[*part] - base)) * *weight)
            .collect();
        let sign = self.elects.then(|| elected_sign(&weighted, MajoritySign::Total));
        let mut sum = base.zeros_like();
        let mut divisor = base.zeros_like();
        for (change, (.., weight)) in weighted.iter().zip(&self.changes) {
            match &sign {
                Some(sign) => {
                    let agrees = change.sign().eq_tensor(sign);
                    sum += change * &agrees;
                    divisor += agrees.to_kind(Kind::Float) * *weight;
                }
                None => sum += change,
            }
        }
        if self.normalize {
            sum = match &sign {
                Some(_) => {
                    let nothing = divisor.eq(0.0).to_kind(Kind::Float);
                    sum / (divisor + nothing)
                }
                None => {
                    let weights: f64 = self.changes.iter().map(|(.., weight)| weight).sum();
                    if weights.abs() < 1e-8 { sum } else { sum / weights }
                }
            };
        }
        if self.lambda != 1.0 {
            sum *= self.lambda;
        }
        sum + base
    }
}
