//! Reads rows of the models' tensors in float32.

use super::ModelMerge;
use super::aligned_rows::AlignedRows;
use crate::convert::merge::streaming::read_entries;
use crate::error::{Error, Result};
use crate::nn::weights::EntryReader;
use std::ops::Range;

/// Rows of one part of a merged tensor.
pub(super) enum PartRows<'a> {
    /// As they are in the model.
    Plain(EntryReader<'a>),
    /// In the order of the merged tokens.
    Aligned(AlignedRows<'a>),
}

impl PartRows<'_> {
    /// Reads rows, each of `columns` entries.
    pub fn read(&self, rows: Range<i64>, columns: i64, numbers: &mut [f32]) -> Result<()> {
        match self {
            Self::Plain(reader) => read_entries(reader, (rows.start * columns) as usize, numbers),
            Self::Aligned(aligned) => aligned.read(rows, columns as usize, numbers),
        }
    }
}

/// Returns a reader of a tensor of a model.
pub(super) fn reader<'a>(merge: &'a ModelMerge, model: usize, name: &str) -> Result<EntryReader<'a>> {
    let found = merge.inputs[model].weights.entry_reader(name);
    found.ok_or_else(|| Error::bug(format!("merge: no tensor `{name}`")))
}
