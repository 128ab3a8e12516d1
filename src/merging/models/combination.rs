//! A merged tensor that is a linear combination of its parts, whose factors follow from their inner products.

use super::blocks::TensorParts;
use super::inner_products::{InnerProducts, PartFactors, Vectors, measure};
use super::prepare::MergedBlocks;
use crate::error::Result;
use std::ops::Range;
use tch::Tensor;

/// A linear combination of the parts, or of their changes of the base.
pub(super) struct Combination {
    /// The factors of the terms.
    pub factors: PartFactors,
    /// The terms of a block of the parts.
    pub terms: Terms,
}

/// What is added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Terms {
    /// The parts themselves, in this order.
    Parts(Vec<usize>),
    /// The changes of the base at this position, by the parts in this order. The base is added to the sum.
    Changes {
        /// Position of the base.
        base: usize,
        /// Positions of the others.
        others: Vec<usize>,
    },
}

impl Terms {
    /// Returns the terms of a block.
    pub fn of(&self, block: &[Tensor]) -> Vec<Tensor> {
        match self {
            Self::Parts(order) => order.iter().map(|part| block[*part].shallow_clone()).collect(),
            Self::Changes { base, others } => others.iter().map(|part| &block[*part] - &block[*base]).collect(),
        }
    }

    /// Returns the number of terms.
    pub fn count(&self) -> usize {
        match self {
            Self::Parts(order) => order.len(),
            Self::Changes { others, .. } => others.len(),
        }
    }
}

impl MergedBlocks for Combination {
    fn block(&self, rows: &Range<i64>, parts: &[Tensor]) -> Tensor {
        let terms = self.terms.of(parts);
        let mut sum = self.factors.times(0, rows, &terms[0]);
        terms[1..].iter().enumerate().for_each(|(i, term)| sum += self.factors.times(i + 1, rows, term));
        match self.terms {
            Terms::Parts(_) => sum,
            Terms::Changes { base, .. } => sum + &parts[base],
        }
    }
}

/// Prepares a linear combination with the factors that `factors` returns for the inner products of the terms: of the whole
/// tensors, or of each row or column.
pub(super) fn combination(
    parts: &TensorParts,
    terms: Terms,
    along: Vectors,
    factors: impl Fn(&InnerProducts) -> Result<Vec<f64>>,
) -> Result<Box<dyn MergedBlocks>> {
    let products = measure(parts, along, |block| terms.of(block))?;
    let groups = products.iter().map(factors).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Combination { factors: PartFactors::new(along, groups), terms }))
}
