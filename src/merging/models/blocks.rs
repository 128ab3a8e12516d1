//! Tensors of several models that are read block by block.

use super::in_order::in_order;
use crate::error::Result;
use crate::native::merging::{MergeKernels, best};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};

/// Largest number of entries in a block, unless one row has more: 128 KiB in float32, so that a block of each of some models fits
/// the cache of a core.
const ENTRIES: i64 = 1 << 15;
/// Largest number of blocks that a thread takes at a time.
const BLOCKS_AT_A_TIME: usize = 16;

/// How a tensor is divided: into blocks of whole rows. A tensor with one dimension is one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorBlocks {
    /// Number of rows.
    pub rows: i64,
    /// Entries of a row.
    pub columns: i64,
}

impl TensorBlocks {
    /// Divides a tensor of this shape. Rows run along the last dimension.
    pub fn of(shape: &[i64]) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        Self { rows, columns }
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> i64 {
        self.rows * self.columns
    }

    /// Returns the number of rows in every block but the last.
    fn step(&self) -> i64 {
        (ENTRIES / self.columns.max(1)).max(1)
    }

    /// Returns the number of blocks.
    pub fn count(&self) -> usize {
        (self.rows as usize).div_ceil(self.step() as usize)
    }

    /// Returns the rows of the block with this number.
    pub fn rows_of(&self, block: usize) -> Range<i64> {
        let start = block as i64 * self.step();
        start..(start + self.step()).min(self.rows)
    }

    /// Returns the number of the block that begins with this row.
    pub(super) fn number_of(&self, first_row: i64) -> usize {
        (first_row / self.step()) as usize
    }

    /// Returns the number of entries of these rows.
    pub fn length(&self, rows: &Range<i64>) -> usize {
        ((rows.end - rows.start) * self.columns) as usize
    }

    /// Calls `work` with the rows of every block, on several threads, each with a state of its own, and hands the results to `take`
    /// in the order of the blocks. Returns the states.
    pub fn each<S: Send, T: Send>(
        &self,
        threads: usize,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, &Range<i64>) -> Result<T> + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<Vec<S>> {
        let count = self.count();
        let together = (count / (4 * threads.max(1))).clamp(1, BLOCKS_AT_A_TIME);
        let several = |state: &mut S, group: usize| -> Result<Vec<T>> {
            let blocks = group * together..((group + 1) * together).min(count);
            blocks.map(|block| work(state, &self.rows_of(block))).collect()
        };
        in_order(count.div_ceil(together), threads, state, several, |results| {
            results.into_iter().try_for_each(&mut take)
        })
    }
}

/// Writes rows of a part, given by its position, into a slice. Called on several threads.
pub type ReadRows<'a> = dyn Fn(usize, Range<i64>, &mut [f32]) -> Result<()> + Sync + 'a;
/// Writes random numbers from 0 to 1 for entries of rows of a part into a slice. Called on several threads.
pub type DrawRows<'a> = dyn Fn(usize, Range<i64>, &mut [f64]) + Sync + 'a;

/// The tensor of one name in several models.
#[derive(Clone, Copy)]
pub struct TensorParts<'a> {
    /// Name of the merged tensor, for messages.
    pub name: &'a str,
    /// How it is divided.
    pub blocks: TensorBlocks,
    /// Position of the base among the parts.
    pub base: Option<usize>,
    /// Number of parts.
    pub count: usize,
    /// Draws a random number for every entry of rows of a part. A number depends on the part and its place alone.
    pub draw: &'a DrawRows<'a>,
    /// Reads rows of a part in float32.
    pub read: &'a ReadRows<'a>,
    /// Number of threads that read and compute.
    pub threads: usize,
}

impl TensorParts<'_> {
    /// Returns the positions of the parts that are not the base.
    pub fn others(&self) -> Vec<usize> {
        (0..self.count).filter(|part| Some(*part) != self.base).collect()
    }

    /// Reads rows of every part.
    pub fn read_all(&self, rows: &Range<i64>) -> Result<Vec<Buffer>> {
        let read = |part: usize| {
            let mut block = Buffer::of(self.blocks.length(rows));
            (self.read)(part, rows.clone(), &mut block)?;
            Ok(block)
        };
        (0..self.count).map(read).collect()
    }

    /// Reads rows of every part but the base, without the base's entries. Without a base, the parts themselves.
    pub(super) fn read_changes(&self, rows: &Range<i64>) -> Result<Vec<Buffer>> {
        let mut parts = self.read_all(rows)?;
        let Some(base) = self.base else { return Ok(parts) };
        let base = parts.remove(base);
        Ok(parts.iter().map(|part| Buffer::change(part, &base)).collect())
    }
}

/// Numbers of a block. Memory is kept by the thread for the next block.
pub struct Buffer(Vec<f32>);

thread_local! {
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer {
    /// Returns a buffer of this length. What it contains is left from an earlier use.
    pub fn of(length: usize) -> Self {
        let mut numbers = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        numbers.resize(length, 0.0);
        Self(numbers)
    }

    /// Returns `part` - `base`.
    pub fn change(part: &[f32], base: &[f32]) -> Self {
        let mut change = Self::of(part.len());
        kernels().subtract(part, base, &mut change);
        change
    }

    /// Returns a copy of numbers.
    pub fn copy(numbers: &[f32]) -> Self {
        let mut copy = Self::of(numbers.len());
        copy.copy_from_slice(numbers);
        copy
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let numbers = std::mem::take(&mut self.0);
        SPARE.with_borrow_mut(|spare| spare.push(numbers));
    }
}

/// Returns slices of the buffers.
pub fn slices(buffers: &[Buffer]) -> Vec<&[f32]> {
    buffers.iter().map(|buffer| &**buffer).collect()
}

/// Returns the loops over blocks, of the best build for this processor.
pub(super) fn kernels() -> &'static MergeKernels {
    best()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns rows of a tensor in memory, for a function that reads them.
    pub fn rows_in<'a>(numbers: &'a [f32], blocks: TensorBlocks, rows: &Range<i64>) -> &'a [f32] {
        &numbers[(rows.start * blocks.columns) as usize..(rows.end * blocks.columns) as usize]
    }

    #[test]
    fn blocks_have_whole_rows_and_cover_the_tensor() {
        let rows = |blocks: TensorBlocks| (0..blocks.count()).map(|i| blocks.rows_of(i)).collect::<Vec<_>>();
        assert_eq!(rows(TensorBlocks::of(&[5, 3 * ENTRIES / 4])), [0..1, 1..2, 2..3, 3..4, 4..5]);
        let matrix = TensorBlocks::of(&[66, 1024]);
        assert_eq!(rows(matrix), [0..32, 32..64, 64..66]);
        assert_eq!((matrix.number_of(64), matrix.length(&(64..66))), (2, 2048));
        assert_eq!(TensorBlocks::of(&[7]), TensorBlocks { rows: 1, columns: 7 });
        assert_eq!(TensorBlocks::of(&[2, 3, 4]), TensorBlocks { rows: 6, columns: 4 });
        assert_eq!(rows(TensorBlocks::of(&[0, 4])), []);
    }

    #[test]
    fn blocks_are_handed_over_in_order() {
        let blocks = TensorBlocks::of(&[1000, 1000]);
        for threads in [1, 3] {
            let mut rows = 0;
            let take = |range: Range<i64>| {
                assert_eq!(range.start, rows);
                rows = range.end;
                Ok(())
            };
            blocks.each(threads, || (), |(), rows| Ok(rows.clone()), take).unwrap();
            assert_eq!(rows, 1000);
        }
    }
}
