//! A merged tensor that is a linear combination of its parts, whose factors follow from their inner products.

use super::blocks::{Buffer, TensorBlocks, TensorParts, kernels, slices};
use super::inner_products::{InnerProducts, PartFactors, Vectors, measure};
use super::prepare::MergedBlocks;
use crate::error::Result;
use std::ops::Range;

/// A linear combination of the parts, or of their changes of the base.
pub(super) struct Combination {
    /// The factors of the terms.
    pub factors: PartFactors,
    /// The terms of a block of the parts.
    pub terms: Terms,
    /// How the tensor is divided.
    pub blocks: TensorBlocks,
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
    /// Calls `with` with the terms of a block.
    pub fn of<R>(&self, block: &[&[f32]], with: impl FnOnce(&[&[f32]]) -> R) -> R {
        match self {
            Self::Parts(order) => with(&order.iter().map(|part| block[*part]).collect::<Vec<_>>()),
            Self::Changes { base, others } => {
                let changes: Vec<Buffer> =
                    others.iter().map(|part| Buffer::change(block[*part], block[*base])).collect();
                with(&slices(&changes))
            }
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
    fn block(&self, rows: &Range<i64>, parts: &[&[f32]], merged: &mut [f32]) {
        let added = match self.terms {
            Terms::Parts(_) => None,
            Terms::Changes { base, .. } => Some(parts[base]),
        };
        self.terms.of(parts, |terms| self.add_up(rows, terms, added, merged));
    }
}

impl Combination {
    /// Writes the sum of the terms times their factors, plus `added`.
    fn add_up(&self, rows: &Range<i64>, terms: &[&[f32]], added: Option<&[f32]>, merged: &mut [f32]) {
        let columns = self.blocks.columns as usize;
        match &self.factors {
            PartFactors::Whole(factors) => kernels().combine(terms, factors, added, merged),
            PartFactors::Rows(factors) => {
                for (row, merged) in merged.chunks_mut(columns).enumerate() {
                    let place = row * columns..(row + 1) * columns;
                    let of_row: Vec<&[f32]> = terms.iter().map(|term| &term[place.clone()]).collect();
                    let added = added.map(|more| &more[place.clone()]);
                    kernels().combine(&of_row, &factors[rows.start as usize + row], added, merged);
                }
            }
            PartFactors::Columns(factors) => {
                match added {
                    Some(more) => merged.copy_from_slice(more),
                    None => merged.fill(0.0),
                }
                for (term, factors) in terms.iter().zip(factors) {
                    for (merged, term) in merged.chunks_mut(columns).zip(term.chunks(columns)) {
                        for ((sum, entry), factor) in merged.iter_mut().zip(term).zip(factors) {
                            *sum += factor * entry;
                        }
                    }
                }
            }
        }
    }
}

/// Prepares a linear combination with the factors that `factors` returns for the inner products of the terms: of the whole
/// tensors, or of each row or column.
pub(super) fn combination<'a>(
    parts: &TensorParts,
    terms: Terms,
    along: Vectors,
    factors: impl Fn(&InnerProducts) -> Result<Vec<f64>>,
) -> Result<Box<dyn MergedBlocks + 'a>> {
    let products = measure(parts, along, &terms)?;
    let groups = products.iter().map(factors).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Combination { factors: PartFactors::new(along, groups), terms, blocks: parts.blocks }))
}
