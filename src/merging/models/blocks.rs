//! Tensors of several models that are read block by block.

use crate::error::Result;
use crate::merging::prune::random_numbers;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Largest number of entries in a block, unless one row has more: 4 MiB in float32.
const ENTRIES: i64 = 1 << 20;

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

    /// Returns the rows of each block, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Range<i64>> + use<> {
        let (rows, step) = (self.rows, (ENTRIES / self.columns.max(1)).max(1));
        (0..rows).step_by(step as usize).map(move |start| start..(start + step).min(rows))
    }
}

/// The tensor of one name in several models.
pub struct TensorParts<'a> {
    /// Name of the merged tensor, for messages.
    pub name: &'a str,
    /// How it is divided.
    pub blocks: TensorBlocks,
    /// Position of the base among the parts.
    pub base: Option<usize>,
    /// Number of parts.
    pub count: usize,
    /// Draws a random number from 0 to 1 for every entry of rows of a part: (rows, columns) in float64. A number depends on the
    /// part and its place alone.
    pub draw: &'a dyn Fn(usize, Range<i64>) -> Tensor,
    /// Reads rows of a part in float32: (rows, columns).
    pub read: &'a dyn Fn(usize, Range<i64>) -> Result<Tensor>,
}

impl TensorParts<'_> {
    /// Returns the positions of the parts that are not the base.
    pub fn others(&self) -> Vec<usize> {
        (0..self.count).filter(|part| Some(*part) != self.base).collect()
    }

    /// Reads rows of every part.
    pub fn read_all(&self, rows: &Range<i64>) -> Result<Vec<Tensor>> {
        (0..self.count).map(|part| (self.read)(part, rows.clone())).collect()
    }

    /// Reads rows of every part but the base, without the base's.
    pub fn read_changes(&self, rows: &Range<i64>) -> Result<Vec<Tensor>> {
        Ok(self.changes(&self.read_all(rows)?))
    }

    /// Returns the parts but the base, without the base's entries. Without a base, the parts themselves.
    pub fn changes(&self, parts: &[Tensor]) -> Vec<Tensor> {
        let change = |part: usize| match self.base {
            Some(base) => &parts[part] - &parts[base],
            None => parts[part].shallow_clone(),
        };
        self.others().into_iter().map(change).collect()
    }
}

/// Returns random numbers from 0 to 1 for rows of a tensor: (rows, columns) in float64. A number depends on the seed, the name of
/// the stream and the position of its entry alone.
pub fn seeded_numbers(seed: u64, stream: &str, columns: i64, rows: Range<i64>) -> Tensor {
    let entries = (rows.start * columns) as usize..(rows.end * columns) as usize;
    Tensor::from_slice(&random_numbers(entries, seed, stream)).view([rows.end - rows.start, columns])
}

/// Returns the sum of a block in float64. The order of the sum does not depend on the number of threads.
pub(super) fn sum(block: &Tensor) -> f64 {
    super::super::on_one_thread(|| block.sum(Kind::Double).double_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_whole_rows_and_cover_the_tensor() {
        let blocks = TensorBlocks::of(&[5, 3 * ENTRIES / 4]);
        assert_eq!(blocks.blocks().collect::<Vec<_>>(), [0..1, 1..2, 2..3, 3..4, 4..5]);
        let matrix = TensorBlocks::of(&[2050, 1024]);
        assert_eq!(matrix.blocks().collect::<Vec<_>>(), [0..1024, 1024..2048, 2048..2050]);
        assert_eq!(TensorBlocks::of(&[7]), TensorBlocks { rows: 1, columns: 7 });
        assert_eq!(TensorBlocks::of(&[2, 3, 4]), TensorBlocks { rows: 6, columns: 4 });
    }
}
