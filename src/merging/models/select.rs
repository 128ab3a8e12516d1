//! Finds the largest entries of a tensor that is read block by block, without sorting it or holding it in memory.
//!
//! Numbers that are not negative have the order of their bits. One pass counts their upper halves, another the lower halves of
//! those with the right upper half.

use super::blocks::TensorBlocks;
use crate::error::Result;
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Which entries of a tensor are its largest. Of equal entries, the first by position count as larger.
#[derive(Debug, Clone)]
pub struct Largest {
    /// All entries above this are among them.
    limit: f32,
    /// How many of the entries that equal the limit are among them.
    equal: i64,
    /// Number of entries that equal the limit before each block, by its first row; empty if all of them are among the largest.
    before: BTreeMap<i64, i64>,
}

impl Largest {
    /// Finds the largest entries. `read` returns rows of numbers that are not negative. `count` is given the number of entries
    /// that are not zero and returns how many entries are wanted.
    pub fn find(
        blocks: TensorBlocks,
        read: impl Fn(Range<i64>) -> Result<Tensor>,
        count: impl FnOnce(i64) -> i64,
    ) -> Result<Self> {
        let (mut upper, mut lower) = (vec![0i64; 1 << 16], vec![0i64; 1 << 16]);
        let mut nonzero = 0;
        for rows in blocks.blocks() {
            for bits in bits(&read(rows)?) {
                upper[(bits >> 16) as usize] += 1;
                nonzero += i64::from(bits != 0);
            }
        }
        let wanted = count(nonzero);
        if wanted <= 0 {
            return Ok(Self { limit: f32::INFINITY, equal: 0, before: BTreeMap::new() });
        }
        if wanted >= blocks.entries() {
            return Ok(Self { limit: -1.0, equal: 0, before: BTreeMap::new() });
        }
        let (high, above) = reached(&upper, wanted);
        for rows in blocks.blocks() {
            bits(&read(rows)?)
                .iter()
                .filter(|b| (**b >> 16) as usize == high)
                .for_each(|b| lower[(b & 0xffff) as usize] += 1);
        }
        let (low, above_low) = reached(&lower, wanted - above);
        let limit = f32::from_bits((high as u32) << 16 | low as u32);
        let equal = wanted - above - above_low;
        let mut before = BTreeMap::new();
        if equal < lower[low] {
            let mut seen = 0;
            for rows in blocks.blocks() {
                before.insert(rows.start, seen);
                seen += bits(&read(rows)?).iter().filter(|b| f32::from_bits(**b) == limit).count() as i64;
            }
        }
        Ok(Self { limit, equal, before })
    }

    /// Returns which entries of a block, given as it was read, are among the largest: booleans of the block's shape.
    pub fn mask(&self, rows: &Range<i64>, numbers: &Tensor) -> Tensor {
        let above = numbers.gt(f64::from(self.limit));
        if self.equal == 0 {
            return above;
        }
        let equal = numbers.eq(f64::from(self.limit));
        let Some(before) = self.before.get(&rows.start) else { return above.logical_or(&equal) };
        let position = equal.flatten(0, -1).cumsum(0, Kind::Int64).view_as(&equal) + *before;
        above.logical_or(&position.le(self.equal).logical_and(&equal))
    }
}

/// Returns the bits of the numbers of a block in float32. Negative zeros count as zeros.
fn bits(block: &Tensor) -> Vec<u32> {
    let flat = block.abs().flatten(0, -1).contiguous();
    let mut numbers = vec![0f32; flat.numel()];
    let length = numbers.len();
    flat.copy_data(&mut numbers, length);
    numbers.into_iter().map(f32::to_bits).collect()
}

/// Returns the bin in which the `wanted`-th largest number is, and how many are in larger bins.
fn reached(counts: &[i64], wanted: i64) -> (usize, i64) {
    let mut above = 0;
    for (bin, count) in counts.iter().enumerate().rev() {
        if above + count >= wanted {
            return (bin, above);
        }
        above += count;
    }
    (0, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Returns the mask of the whole tensor, block by block.
    fn mask(tensor: &Tensor, blocks: TensorBlocks, wanted: i64) -> Tensor {
        let read = |rows: Range<i64>| Ok(tensor.narrow(0, rows.start, rows.end - rows.start));
        let found = Largest::find(blocks, read, |_| wanted).unwrap();
        let parts: Vec<Tensor> = blocks.blocks().map(|rows| found.mask(&rows, &read(rows.clone()).unwrap())).collect();
        Tensor::cat(&parts, 0)
    }

    #[test]
    fn the_largest_are_those_that_sorting_finds() {
        // 2,500 rows of 1,000 entries are three blocks; rounding makes many of the numbers equal.
        let tensor = ((Tensor::randn([2500, 1000], (Kind::Float, Device::Cpu)) * 16.0).round() / 16.0).abs();
        let blocks = TensorBlocks::of(&tensor.size());
        assert!(blocks.blocks().count() > 2);
        let flat = tensor.flatten(0, -1);
        let (_, order) = flat.sort_stable(true, 0, true);
        for wanted in [1, 777, 1_000_000, 2_499_999] {
            let expected = flat.zeros_like().index_fill(0, &order.narrow(0, 0, wanted), 1.0).gt(0.5);
            assert!(mask(&tensor, blocks, wanted).flatten(0, -1).equal(&expected), "{wanted}");
        }
        let count = |wanted| mask(&tensor, blocks, wanted).sum(Kind::Int64).int64_value(&[]);
        assert_eq!((count(0), count(2_500_000), count(3_000_000)), (0, 2_500_000, 2_500_000));
    }

    #[test]
    fn entries_that_are_not_zero_are_counted() {
        let tensor = Tensor::from_slice(&[0f32, 3.0, 0.0, 1e-42, 2.0]).view([1, 5]);
        let read = |_: Range<i64>| Ok(tensor.shallow_clone());
        let mut seen = 0;
        let found = Largest::find(TensorBlocks::of(&[5]), read, |nonzero| {
            seen = nonzero;
            1
        });
        assert_eq!(seen, 3);
        let kept = found.unwrap().mask(&(0..1), &tensor);
        assert!(kept.equal(&tensor.eq(3.0)));
    }
}
