//! What a method reads before the model is loaded: its rows, tokenised, measured and shown.

use super::contract::Method;
use crate::adapters::AdapterSpec;
use crate::data::batch::BatchPlan;
use crate::data::cache::TokenCache;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::{Dataset, DatasetItem, DatasetSummary, EncodeOptions, Overflow};
use crate::data::encode::{Example, Supervise};
use crate::data::inspect::{Duplicates, SplitOverlap};
use crate::data::rows::SourceList;
use crate::error::Result;
use crate::models::Model;
use crate::report;
use std::path::Path;
use std::rc::Rc;

/// Everything that reading a method's rows depends on.
#[derive(Clone)]
pub struct DataContext<'a> {
    /// The tokenizer with its chat template.
    pub tokenizer: Rc<ChatTokenizer>,
    /// The folder of the base model.
    pub model: &'a Path,
    /// The sources of training rows.
    pub train: &'a SourceList,
    /// The sources of validation rows.
    pub valid: Option<&'a SourceList>,
    /// Maximum number of tokens of an item.
    pub max_len: usize,
    /// What happens to longer items.
    pub on_overflow: Overflow,
    /// Share of longer items that is accepted.
    pub overflow_tolerance: f64,
    /// Where tokenised rows are kept.
    pub cache: &'a TokenCache,
    /// How items become packed rows and optimiser steps.
    pub batch: BatchPlan,
    /// True if each epoch has another order.
    pub shuffle: bool,
    /// The seed of the order.
    pub seed: u64,
    /// The adapter that is trained; `None`: the base itself is.
    pub adapter: Option<&'a AdapterSpec>,
}

/// What was read for one split, and the number of tokens of each item.
#[derive(Clone, Copy)]
pub struct SplitStatistics<'a> {
    /// What was read.
    pub summary: &'a DatasetSummary,
    /// Number of tokens of each item.
    pub lengths: &'a [u32],
}

/// The tokenised rows of a run, ready for the model.
pub trait MethodRows {
    /// Returns what was read to train on.
    fn train(&self) -> SplitStatistics<'_>;
    /// Returns what was read for validation; `None` without validation rows.
    fn valid(&self) -> Option<SplitStatistics<'_>>;
    /// Returns the number of tokens in the longest packed row of the first epoch.
    fn longest_row(&self) -> usize;
    /// Returns the number of optimiser steps in `epochs` epochs.
    fn steps_for(&self, epochs: f64) -> u64;
    /// Counts duplicate training rows.
    fn duplicates(&self) -> Duplicates;
    /// Counts validation rows that are also training rows; `None` without validation rows.
    fn overlap(&self) -> Option<SplitOverlap>;
    /// Returns the first `most` rows as the model sees them, with marks on the tokens that are trained on.
    fn preview(&self, most: usize) -> Result<Vec<Example>>;
    /// Builds the method on these rows.
    fn method(self: Box<Self>, model: &Model) -> Result<Box<dyn Method>>;
}

impl DataContext<'_> {
    /// Reads the training and the validation items and reports what was read.
    pub fn open<T: DatasetItem>(&self, supervise: Supervise) -> Result<(Dataset<T>, Option<Dataset<T>>)> {
        let options = EncodeOptions {
            supervise,
            max_len: self.max_len,
            on_overflow: self.on_overflow,
            overflow_tolerance: self.overflow_tolerance,
        };
        let load = |sources: &SourceList| -> Result<Dataset<T>> {
            let rows = Dataset::open(sources, &self.tokenizer, &options, self.cache)?;
            report::info(rows.summary.line());
            rows.summary.mix_lines().iter().for_each(report::info);
            rows.summary.warnings().iter().for_each(report::warn);
            Ok(rows)
        };
        Ok((load(self.train)?, self.valid.map(load).transpose()?))
    }
}

impl<'a, T: DatasetItem> From<&'a Dataset<T>> for SplitStatistics<'a> {
    fn from(rows: &'a Dataset<T>) -> Self {
        Self { summary: &rows.summary, lengths: rows.lengths() }
    }
}
