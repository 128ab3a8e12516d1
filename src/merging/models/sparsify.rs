//! Chooses which entries of a change are kept, and rescales them.

use super::blocks::{TensorParts, sum};
use super::select::Largest;
use super::spec::{ModelMethod, ParameterValues};
use crate::error::Result;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Sums below this are not divided by.
const SMALLEST_SUM: f64 = 1e-7;

/// Which entries of the change of one part are kept.
pub(super) enum Kept {
    /// All of them.
    All,
    /// None.
    None,
    /// The largest.
    Largest(Largest),
    /// Those that are among the first, and not among the second: the largest without the very largest.
    Between(Largest, Largest),
    /// Each with this probability.
    Random(f64),
    /// Each with a probability that grows with its rank in its row, from the first number to the second.
    RandomByRank(f64, f64),
}

/// The change of one part with some entries set to zero.
pub(super) struct Sparse<'a> {
    kept: Kept,
    part: usize,
    /// Draws a random number for each entry of rows of a part.
    draw: &'a dyn Fn(usize, Range<i64>) -> Tensor,
    /// What the entries that are kept are multiplied by.
    scale: f64,
}

impl<'a> Sparse<'a> {
    /// Measures a change. `read` returns rows of it; `part`: its position.
    pub fn new(
        method: ModelMethod,
        parts: &TensorParts<'a>,
        part: usize,
        values: &ParameterValues,
        read: &dyn Fn(Range<i64>) -> Result<Tensor>,
    ) -> Result<Self> {
        let density = values.of(part, "density").unwrap_or(1.0);
        let magnitudes = |rows: Range<i64>| Ok(read(rows)?.abs());
        let (blocks, entries) = (parts.blocks, parts.blocks.entries());
        let share = |share: f64| (share * entries as f64) as i64;
        let kept = match method {
            _ if density >= 1.0 => Kept::All,
            ModelMethod::TaskArithmetic => Kept::All,
            _ if density <= 0.0 => Kept::None,
            ModelMethod::Ties => Kept::Largest(Largest::find(blocks, magnitudes, |_| share(density).max(1))?),
            ModelMethod::Breadcrumbs | ModelMethod::BreadcrumbsTies => {
                let (wanted, outliers) = (share(density), share(values.of(part, "gamma").unwrap_or(0.0)));
                // Fewer outliers are removed if the density asks for more entries than are left.
                let smallest = (entries - wanted - outliers).max(0);
                let kept = Largest::find(blocks, magnitudes, |_| entries - smallest)?;
                Kept::Between(kept, Largest::find(blocks, magnitudes, |_| entries - smallest - wanted)?)
            }
            ModelMethod::Della | ModelMethod::DellaLinear => {
                let epsilon = values.of(part, "epsilon").unwrap_or(0.0);
                Kept::RandomByRank(density - epsilon, density + epsilon)
            }
            _ => Kept::Random(density),
        };
        let mut sparse = Self { kept, part, draw: parts.draw, scale: 1.0 };
        if values.is("rescale") && !matches!(sparse.kept, Kept::All | Kept::None) {
            // As in mergekit, so that the sum of magnitudes stays; DARE's paper divides by the density, which is the same on
            // average.
            let (mut before, mut after) = (0.0, 0.0);
            for rows in blocks.blocks() {
                let change = read(rows.clone())?;
                before += sum(&change.abs());
                after += sum(&sparse.of(&rows, &change).abs());
            }
            if before >= SMALLEST_SUM && after >= SMALLEST_SUM {
                sparse.scale = before / after;
            }
        }
        Ok(sparse)
    }

    /// Returns a block of the change with the other entries set to zero, rescaled.
    pub fn of(&self, rows: &Range<i64>, change: &Tensor) -> Tensor {
        let mask = match &self.kept {
            Kept::All => return change.shallow_clone(),
            Kept::None => return change.zeros_like(),
            Kept::Largest(largest) => largest.mask(rows, &change.abs()),
            Kept::Between(kept, outliers) => {
                let size = change.abs();
                kept.mask(rows, &size).logical_and(&outliers.mask(rows, &size).logical_not())
            }
            Kept::Random(probability) => (self.draw)(self.part, rows.clone()).lt(*probability),
            Kept::RandomByRank(least, most) => {
                (self.draw)(self.part, rows.clone()).lt_tensor(&probabilities(change, *least, *most))
            }
        };
        change * mask.view_as(change) * self.scale
    }
}

/// Returns probabilities that grow with the rank of an entry's magnitude in its row, from `least` to `most` (DELLA, Deep et al.
/// 2024, arXiv 2406.11617, section 3.1). The only entry of a row has the mean.
pub(super) fn probabilities(change: &Tensor, least: f64, most: f64) -> Tensor {
    let last = change.size()[1] - 1;
    if last == 0 {
        return change.to_kind(Kind::Double).fill_((least + most) / 2.0);
    }
    let (_, order) = change.abs().sort_stable(true, 1, false);
    let ranks = order.argsort(1, false).to_kind(Kind::Double);
    ranks * ((most - least) / last as f64) + least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_grow_with_the_rank_in_the_row() {
        let change = Tensor::from_slice(&[3f32, -1.0, 2.0, 0.0, -5.0, 4.0]).view([2, 3]);
        let found = Vec::<f64>::try_from(probabilities(&change, 0.2, 0.6).flatten(0, -1)).unwrap();
        for (found, expected) in found.iter().zip([0.6, 0.2, 0.4, 0.2, 0.6, 0.4]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(probabilities(&Tensor::from_slice(&[1f32]).view([1, 1]), 0.2, 0.6).double_value(&[0, 0]), 0.4);
    }
}
