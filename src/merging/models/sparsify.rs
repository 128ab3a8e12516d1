//! Chooses which entries of a change are kept, and rescales them.

use super::blocks::{Buffer, TensorParts, kernels};
use super::select::{BlockVectors, Largest, Wanted, keep};
use super::spec::{ModelMethod, ParameterValues};
use crate::error::{Error, Result};
use std::ops::Range;

/// Sums below this are not divided by.
const SMALLEST_SUM: f64 = 1e-7;

/// Which entries of the change of one part are kept.
enum Kept {
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
pub(super) struct Sparse {
    kept: Kept,
    part: usize,
    /// What the entries that are kept are multiplied by.
    scale: f64,
}

impl Sparse {
    /// Measures the changes of all parts but the base, in their order.
    pub fn of_changes(method: ModelMethod, parts: &TensorParts, values: &ParameterValues) -> Result<Vec<Self>> {
        let others = parts.others();
        let entries = parts.blocks.entries();
        // The largest entries that have to be found: one or two lists for some of the changes.
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut kept: Vec<(Kept, usize)> = Vec::new(); // with the number of lists
        for (vector, part) in others.iter().enumerate() {
            let density = values.of(*part, "density").unwrap_or(1.0);
            let share = |share: f64| (share * entries as f64) as i64;
            let find = |counts: &[i64], wanted: &mut Vec<Wanted>| {
                wanted.extend(counts.iter().map(|count| Wanted { vector, count: *count }));
                (Kept::All, counts.len())
            };
            kept.push(match method {
                _ if density >= 1.0 => (Kept::All, 0),
                ModelMethod::TaskArithmetic => (Kept::All, 0),
                _ if density <= 0.0 => (Kept::None, 0),
                ModelMethod::Ties => find(&[share(density).max(1)], &mut wanted),
                ModelMethod::Breadcrumbs | ModelMethod::BreadcrumbsTies => {
                    let (count, outliers) = (share(density), share(values.of(*part, "gamma").unwrap_or(0.0)));
                    // Fewer outliers are removed if the density asks for more entries than are left.
                    let smallest = (entries - count - outliers).max(0);
                    find(&[entries - smallest, entries - smallest - count], &mut wanted)
                }
                ModelMethod::Della | ModelMethod::DellaLinear => {
                    let epsilon = values.of(*part, "epsilon").unwrap_or(0.0);
                    (Kept::RandomByRank(density - epsilon, density + epsilon), 0)
                }
                _ => (Kept::Random(density), 0),
            });
        }
        let read = |rows: &Range<i64>| parts.read_changes(rows);
        let vectors = BlockVectors { blocks: parts.blocks, threads: parts.threads, count: others.len(), read: &read };
        let mut found = vectors.largest(&wanted)?.into_iter();
        let mut next = || found.next().ok_or_else(|| Error::bug("fewer lists of largest entries than wanted"));
        let mut changes = Vec::new();
        for ((kept, lists), part) in kept.into_iter().zip(&others) {
            let kept = match lists {
                0 => kept,
                1 => Kept::Largest(next()?),
                _ => Kept::Between(next()?, next()?),
            };
            changes.push(Self { kept, part: *part, scale: 1.0 });
        }
        if values.is("rescale") && changes.iter().any(Self::drops_some) {
            Self::rescale(&mut changes, parts)?;
        }
        Ok(changes)
    }

    /// Returns true if some entries are kept, and others are not.
    fn drops_some(&self) -> bool {
        !matches!(self.kept, Kept::All | Kept::None)
    }

    /// Sets the scales so that the sum of magnitudes stays, as in mergekit. DARE's paper divides by the density, which is the same
    /// on average.
    fn rescale(changes: &mut [Self], parts: &TensorParts) -> Result<()> {
        let mut sums = vec![(0.0, 0.0); changes.len()]; // of all entries, of those that are kept
        let measure = |(): &mut (), rows: &Range<i64>| -> Result<Vec<(f64, f64)>> {
            let mut blocks = parts.read_changes(rows)?;
            let of_change = |(change, block): (&Self, &mut Buffer)| {
                if !change.drops_some() {
                    return (0.0, 0.0);
                }
                let before = kernels().magnitude(block);
                change.apply(parts, rows, block, 1.0);
                (before, kernels().magnitude(block))
            };
            Ok(changes.iter().zip(&mut blocks).map(of_change).collect())
        };
        parts.blocks.each(
            parts.threads,
            || (),
            measure,
            |found| {
                for (sum, found) in sums.iter_mut().zip(found) {
                    *sum = (sum.0 + found.0, sum.1 + found.1);
                }
                Ok(())
            },
        )?;
        for (change, (before, after)) in changes.iter_mut().zip(sums) {
            if before >= SMALLEST_SUM && after >= SMALLEST_SUM {
                change.scale = before / after;
            }
        }
        Ok(())
    }

    /// Sets the other entries of a block of the change to zero, and multiplies those that are kept by their scale and by `weight`.
    pub fn apply(&self, parts: &TensorParts, rows: &Range<i64>, change: &mut [f32], weight: f64) {
        let factor = (self.scale * weight) as f32;
        let draw = || {
            let mut numbers = vec![0.0; change.len()];
            (parts.draw)(self.part, rows.clone(), &mut numbers);
            numbers
        };
        match &self.kept {
            Kept::All if factor == 1.0 => {}
            Kept::All => change.iter_mut().for_each(|entry| *entry *= factor),
            Kept::None => change.fill(0.0),
            Kept::Largest(largest) => keep(largest, None, rows.start, change, factor),
            Kept::Between(largest, outliers) => keep(largest, Some(outliers), rows.start, change, factor),
            Kept::Random(probability) => kernels().keep_share(change, &draw(), *probability, factor),
            Kept::RandomByRank(least, most) => {
                let numbers = draw();
                let likely = probabilities(change, parts.blocks.columns as usize, *least, *most);
                kernels().keep_random(change, &numbers, &likely, factor);
            }
        }
    }
}

/// Returns probabilities that grow with the rank of an entry's magnitude in its row, from `least` to `most` (DELLA, Deep et al.
/// 2024, arXiv 2406.11617, section 3.1). Of equal magnitudes, the later has the higher rank. The only entry of a row has the mean.
fn probabilities(change: &[f32], columns: usize, least: f64, most: f64) -> Vec<f64> {
    if columns == 1 {
        return vec![(least + most) / 2.0; change.len()];
    }
    let mut found = vec![0.0; change.len()];
    let step = (most - least) / (columns - 1) as f64;
    let mut keys: Vec<u64> = vec![0; columns]; // the bits of a magnitude, then the position
    for (row, found) in change.chunks(columns).zip(found.chunks_mut(columns)) {
        for (position, (key, entry)) in keys.iter_mut().zip(row).enumerate() {
            *key = u64::from(entry.abs().to_bits()) << 32 | position as u64;
        }
        keys.sort_unstable();
        for (rank, key) in keys.iter().enumerate() {
            found[(key & 0xffff_ffff) as usize] = rank as f64 * step + least;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_grow_with_the_rank_in_the_row() {
        let found = probabilities(&[3.0, -1.0, 2.0, 0.0, -5.0, 4.0], 3, 0.2, 0.6);
        for (found, expected) in found.iter().zip([0.6, 0.2, 0.4, 0.2, 0.6, 0.4]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(probabilities(&[1.0], 1, 0.2, 0.6), [0.4]);
    }
}
