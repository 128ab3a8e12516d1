//! Reads the rows of one model's embedding or output head in the order of the merged tokens.

use super::ModelMerge;
use super::reading::reader;
use crate::convert::merge::streaming::read_entries;
use crate::error::{Error, Result};
use crate::nn::weights::EntryReader;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Rows of models whose mean is used, as (model, row); zeros if there are none.
pub(super) type RowMean = Vec<(usize, usize)>;

/// The rows of one model in the order of the result's tokens.
pub(super) struct AlignedRows<'a> {
    model: usize,
    /// The tensor in every model whose rows are read.
    readers: BTreeMap<usize, EntryReader<'a>>,
    /// By token: the row of the model.
    own: Vec<Option<usize>>,
    /// By token: the row if the model has none.
    substitutes: Arc<Vec<RowMean>>,
    /// The row after all tokens.
    padding: Option<Vec<f32>>,
}

impl<'a> AlignedRows<'a> {
    /// Opens the rows of a model in its tensor `name`. With `padded`, the number of columns, rows follow that have no token: the
    /// mean of those that have one.
    pub fn new(
        merge: &'a ModelMerge,
        name: &str,
        model: usize,
        own: Vec<Option<usize>>,
        substitutes: Arc<Vec<RowMean>>,
        padded: Option<usize>,
    ) -> Result<Self> {
        let mut readers = BTreeMap::from([(model, reader(merge, model, name)?)]);
        for other in substitutes.iter().flatten().map(|(model, _)| *model) {
            if !readers.contains_key(&other) {
                readers.insert(other, reader(merge, other, name)?);
            }
        }
        let mut rows = Self { model, readers, own, substitutes, padding: None };
        rows.padding = padded.map(|columns| rows.mean(columns)).transpose()?;
        Ok(rows)
    }

    /// Reads rows in float32.
    pub fn read(&self, rows: Range<i64>, columns: usize, numbers: &mut [f32]) -> Result<()> {
        let (mut id, end) = (rows.start as usize, rows.end as usize);
        let place =
            |from: usize, to: usize| (from - rows.start as usize) * columns..(to - rows.start as usize) * columns;
        while id < end {
            let Some(own) = self.own.get(id) else {
                let padding = self.padding.as_ref().ok_or_else(|| Error::bug("merge: rows without a token"))?;
                numbers[place(id, end)].chunks_mut(columns).for_each(|row| row.copy_from_slice(padding));
                return Ok(());
            };
            let Some(first) = own else {
                self.read_mean(&self.substitutes[id], columns, &mut numbers[place(id, id + 1)])?;
                id += 1;
                continue;
            };
            // Rows that lie one after another are read at once.
            let follows = |n: &usize| id + n < end && self.own.get(id + n) == Some(&Some(first + n));
            let length = (1..).take_while(follows).count() + 1;
            self.read_rows(self.model, *first, columns, &mut numbers[place(id, id + length)])?;
            id += length;
        }
        Ok(())
    }

    /// Reads rows of a model from `first` on.
    fn read_rows(&self, model: usize, first: usize, columns: usize, numbers: &mut [f32]) -> Result<()> {
        let reader = self.readers.get(&model).ok_or_else(|| Error::bug("merge: rows of a model that is not open"))?;
        read_entries(reader, first * columns, numbers)
    }

    fn read_mean(&self, sources: &[(usize, usize)], columns: usize, mean: &mut [f32]) -> Result<()> {
        mean.fill(0.0);
        let mut row = vec![0.0; columns];
        for (model, number) in sources {
            self.read_rows(*model, *number, columns, &mut row)?;
            mean.iter_mut().zip(&row).for_each(|(sum, entry)| *sum += entry);
        }
        let count = sources.len().max(1) as f32;
        mean.iter_mut().for_each(|sum| *sum /= count);
        Ok(())
    }

    /// Returns the mean of the rows that have a token.
    fn mean(&self, columns: usize) -> Result<Vec<f32>> {
        let mut sum = vec![0.0f64; columns];
        let mut row = vec![0.0; columns];
        for id in 0..self.own.len() as i64 {
            self.read(id..id + 1, columns, &mut row)?;
            sum.iter_mut().zip(&row).for_each(|(sum, entry)| *sum += f64::from(*entry));
        }
        Ok(sum.into_iter().map(|sum| (sum / self.own.len() as f64) as f32).collect())
    }
}
