//! Finds the largest entries of tensors that are read block by block, without sorting them or holding them in memory.
//!
//! Magnitudes have the order of their bits. One pass counts their upper halves, another the lower halves of those with the right
//! upper half. If only some of the entries that equal the limit are wanted, a third pass counts them by block.

use super::blocks::{Buffer, TensorBlocks, kernels};
use crate::error::Result;
use crate::native::merging::{LOWER_BINS, MagnitudeRange, UPPER_BINS};
use std::ops::Range;

/// Which entries of a vector have the largest magnitudes. Of equal ones, the first by position count as larger.
#[derive(Debug, Clone, PartialEq)]
pub struct Largest {
    /// All entries with a larger magnitude are among them.
    limit: f32,
    /// How many of the entries that equal the limit are among them.
    equal: i64,
    /// Number of entries that equal the limit before each block; empty if all of them are among the largest, or none.
    before: Vec<i64>,
    blocks: TensorBlocks,
}

/// How many of the largest entries of a vector are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The vector.
    pub vector: usize,
    /// The number of entries.
    pub count: i64,
}

/// Vectors that are read block by block.
pub(super) struct BlockVectors<'a> {
    /// How they are divided.
    pub blocks: TensorBlocks,
    /// Number of threads.
    pub threads: usize,
    /// Number of vectors.
    pub count: usize,
    /// Reads rows of all of them.
    pub read: &'a (dyn Fn(&Range<i64>) -> Result<Vec<Buffer>> + Sync),
}

impl BlockVectors<'_> {
    /// Calls `count` with the vectors of every block and counters, one list for each of `lists`, and returns the totals.
    fn totals(
        &self,
        lists: usize,
        bins: usize,
        count: impl Fn(&[Buffer], &mut [Vec<u32>]) + Sync,
    ) -> Result<Vec<Vec<u64>>> {
        /// The counts of a thread, and those that were moved out of them before they could overflow.
        struct Counters {
            counts: Vec<Vec<u32>>,
            totals: Vec<Vec<u64>>,
            entries: u64,
        }
        let move_into = |totals: &mut Vec<Vec<u64>>, counts: &mut Vec<Vec<u32>>| {
            totals.resize(lists, vec![0; bins]);
            for (totals, counts) in totals.iter_mut().zip(counts) {
                totals.iter_mut().zip(counts).for_each(|(total, count)| *total += u64::from(std::mem::take(count)));
            }
        };
        let new = || Counters { counts: vec![vec![0; bins]; lists], totals: Vec::new(), entries: 0 };
        let add = |own: &mut Counters, rows: &Range<i64>| {
            let entries = self.blocks.length(rows) as u64;
            if own.entries + entries > u64::from(u32::MAX) {
                move_into(&mut own.totals, &mut own.counts);
                own.entries = 0;
            }
            own.entries += entries;
            count(&(self.read)(rows)?, &mut own.counts);
            Ok(())
        };
        let mut all = Vec::new();
        for mut own in self.blocks.each(self.threads, new, add, |()| Ok(()))? {
            move_into(&mut all, &mut own.counts);
            for (all, moved) in all.iter_mut().zip(own.totals) {
                all.iter_mut().zip(moved).for_each(|(total, moved)| *total += moved);
            }
        }
        Ok(all)
    }

    /// Returns the number of entries of each vector that are not zero.
    pub fn nonzero(&self) -> Result<Vec<i64>> {
        let mut found = vec![self.blocks.entries(); self.count];
        let zeros = |(): &mut (), rows: &Range<i64>| {
            Ok((self.read)(rows)?.iter().map(|vector| kernels().count_equal(vector, 0.0)).collect::<Vec<i64>>())
        };
        self.blocks.each(
            self.threads,
            || (),
            zeros,
            |zeros| {
                found.iter_mut().zip(zeros).for_each(|(found, zeros)| *found -= zeros);
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// Finds the largest entries of each of these numbers.
    pub fn largest(&self, wanted: &[Wanted]) -> Result<Vec<Largest>> {
        let fixed = |limit| Largest { limit, equal: 0, before: Vec::new(), blocks: self.blocks };
        let mut found: Vec<Largest> = Vec::new();
        let mut open: Vec<Search> = Vec::new();
        for (i, Wanted { vector, count }) in wanted.iter().copied().enumerate() {
            found.push(fixed(if count <= 0 { f32::INFINITY } else { -1.0 }));
            if count > 0 && count < self.blocks.entries() {
                open.push(Search { place: i, vector, left: count as u64, upper: 0, limit: 0.0, equal: 0 });
            }
        }
        if open.is_empty() {
            return Ok(found);
        }
        let counted: Vec<bool> = (0..self.count).map(|vector| open.iter().any(|s| s.vector == vector)).collect();
        let upper = self.totals(self.count, UPPER_BINS, |vectors, counts| {
            let pairs = vectors.iter().zip(counts).zip(&counted);
            pairs.filter(|(_, counted)| **counted).for_each(|((v, counts), _)| kernels().count_upper(v, counts));
        })?;
        for search in &mut open {
            let (bin, above) = reached(&upper[search.vector], search.left);
            (search.upper, search.left) = (bin as u32, search.left - above);
        }
        let lower = self.totals(open.len(), LOWER_BINS, |vectors, counts| {
            let pairs = open.iter().zip(counts);
            pairs.for_each(|(s, counts)| kernels().count_lower(&vectors[s.vector], s.upper, counts));
        })?;
        for (search, counts) in open.iter_mut().zip(&lower) {
            let (bin, above) = reached(counts, search.left);
            search.limit = f32::from_bits(search.upper << 16 | bin as u32);
            search.equal = search.left - above;
            let place = &mut found[search.place];
            (place.limit, place.equal) = (search.limit, search.equal as i64);
            search.left = counts[bin] - search.equal; // those that are not among the largest
        }
        open.retain(|search| search.left > 0);
        if open.is_empty() {
            return Ok(found);
        }
        let mut seen = vec![0; open.len()];
        let equal = |(): &mut (), rows: &Range<i64>| {
            let vectors = (self.read)(rows)?;
            let count = |s: &Search| kernels().count_equal(&vectors[s.vector], s.limit);
            Ok(open.iter().map(count).collect::<Vec<i64>>())
        };
        self.blocks.each(
            self.threads,
            || (),
            equal,
            |equal| {
                for ((search, seen), equal) in open.iter().zip(&mut seen).zip(equal) {
                    found[search.place].before.push(*seen);
                    *seen += equal;
                }
                Ok(())
            },
        )?;
        Ok(found)
    }
}

/// A limit that is looked for.
struct Search {
    place: usize,
    vector: usize,
    /// How many entries are still wanted of those that are looked at next.
    left: u64,
    upper: u32,
    limit: f32,
    equal: u64,
}

/// Returns the bin in which the `wanted`-th largest number is, and how many are in larger bins.
fn reached(counts: &[u64], wanted: u64) -> (usize, u64) {
    let mut above = 0;
    for (bin, count) in counts.iter().enumerate().rev() {
        if above + count >= wanted {
            return (bin, above);
        }
        above += count;
    }
    (0, above)
}

/// Which of the entries of a block that equal the limit are among the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EqualEntries {
    None,
    All,
    /// The first of them, this many.
    First(i64),
}

impl EqualEntries {
    /// Returns whether the next one is among the largest.
    fn next(&mut self) -> bool {
        match self {
            Self::None | Self::First(0) => false,
            Self::All => true,
            Self::First(left) => {
                *left -= 1;
                true
            }
        }
    }
}

impl Largest {
    fn equal_in(&self, first_row: i64) -> EqualEntries {
        if self.before.is_empty() {
            return if self.equal > 0 { EqualEntries::All } else { EqualEntries::None };
        }
        let block = self.blocks.number_of(first_row);
        let left = self.equal - self.before[block];
        match self.before.get(block + 1) {
            _ if left <= 0 => EqualEntries::None,
            Some(after) if *after <= self.equal => EqualEntries::All,
            _ => EqualEntries::First(left),
        }
    }
}

/// Multiplies the entries of a block that are among the largest, and not among the `outliers`, by `factor`, and sets the others to
/// zero. `entries`: the block as it was measured, which begins with `first_row`.
pub(super) fn keep(largest: &Largest, outliers: Option<&Largest>, first_row: i64, entries: &mut [f32], factor: f32) {
    let mut inside = largest.equal_in(first_row);
    let mut outside = outliers.map_or(EqualEntries::None, |outliers| outliers.equal_in(first_row));
    let most = outliers.map_or(f32::INFINITY, |outliers| outliers.limit);
    let some = |entries: EqualEntries| matches!(entries, EqualEntries::First(_));
    if !some(inside) && !some(outside) {
        let (with_least, without_most) = (inside == EqualEntries::All, outside == EqualEntries::All);
        kernels().keep(entries, MagnitudeRange { least: largest.limit, with_least, most, without_most }, factor);
        return;
    }
    for entry in entries {
        let size = entry.abs();
        let is_inside = size > largest.limit || (size == largest.limit && inside.next());
        let is_outside = size > most || (size == most && outside.next());
        *entry = if is_inside && !is_outside { *entry * factor } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::rows_in;
    use super::*;

    /// Numbers with both signs, many of which have equal magnitudes.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 4096.0 - 2048.0
        };
        (0..count).map(|_| (next() / 64.0).round() / 16.0).collect()
    }

    /// Returns which entries are kept, and marks them in order of magnitude by sorting.
    fn compare(numbers: &[f32], shape: [i64; 2], wanted: i64, without: i64, threads: usize) {
        let blocks = TensorBlocks::of(&shape);
        assert!(blocks.count() > 2);
        let read = |rows: &Range<i64>| Ok(vec![Buffer::copy(rows_in(numbers, blocks, rows))]);
        let vectors = BlockVectors { blocks, threads, count: 1, read: &read };
        let asked = [wanted, without].map(|count| Wanted { vector: 0, count });
        let found = vectors.largest(&asked).unwrap();
        let mut kept = Vec::new();
        for rows in (0..blocks.count()).map(|block| blocks.rows_of(block)) {
            let mut block = rows_in(numbers, blocks, &rows).to_vec();
            let outliers = (without > 0).then_some(&found[1]);
            keep(&found[0], outliers, rows.start, &mut block, 2.0);
            kept.extend(block);
        }
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by(|a, b| numbers[*b].abs().total_cmp(&numbers[*a].abs()));
        let mut expected = vec![0.0; numbers.len()];
        let end = wanted.clamp(0, numbers.len() as i64) as usize;
        order[(without.max(0) as usize).min(end)..end].iter().for_each(|i| expected[*i] = 2.0 * numbers[*i]);
        assert!(kept == expected, "{wanted} without {without} on {threads} threads");
    }

    #[test]
    fn the_largest_are_those_that_sorting_finds() {
        let numbers = numbers(150_000);
        for threads in [1, 2] {
            for wanted in [-1, 0, 1, 777, 50_000, 149_999, 150_000, 200_000] {
                compare(&numbers, [150, 1000], wanted, 0, threads);
            }
            compare(&numbers, [150, 1000], 100_000, 1234, threads);
            compare(&vec![-3.0; 150_000], [150, 1000], 70_000, 20_000, threads);
        }
    }

    #[test]
    fn entries_that_are_not_zero_are_counted() {
        let numbers = [0f32, 3.0, -0.0, 1e-42, 2.0];
        let read = |_: &Range<i64>| Ok(vec![Buffer::copy(&numbers)]);
        let vectors = BlockVectors { blocks: TensorBlocks::of(&[5]), threads: 1, count: 1, read: &read };
        assert_eq!(vectors.nonzero().unwrap(), [3]);
        let found = vectors.largest(&[Wanted { vector: 0, count: 3 }]).unwrap();
        let mut kept = numbers;
        keep(&found[0], None, 0, &mut kept, 1.0);
        assert_eq!(kept, [0.0, 3.0, 0.0, 1e-42, 2.0]);
    }
}
