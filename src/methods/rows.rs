//! What a method reads before the model is there: its rows, tokenised, measured and shown.

use super::Method;
use crate::adapters::AdapterSpec;
use crate::data::quality::{Duplicates, Overlap};
use crate::data::{
    BatchPlan, Cache, ChatTokenizer, Dataset, EncodeOptions, Example, Item, Overflow, Sources, Summary, Supervise,
};
use crate::error::Result;
use crate::models::Model;
use crate::report;
use std::path::Path;
use std::rc::Rc;

/// All that reading rows depends on.
#[derive(Clone)]
pub struct Ground<'a> {
    pub tokenizer: Rc<ChatTokenizer>,
    /// The base's folder.
    pub model: &'a Path,
    pub train: &'a Sources,
    pub valid: Option<&'a Sources>,
    pub max_len: usize,
    pub on_overflow: Overflow,
    pub overflow_tolerance: f64,
    pub cache: &'a Cache,
    pub batch: BatchPlan,
    pub shuffle: bool,
    pub seed: u64,
    pub adapter: Option<&'a AdapterSpec>,
}

/// Rows as they are measured: what was read, and the tokens of each item.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub summary: &'a Summary,
    pub lengths: &'a [u32],
}

/// The rows of a run, ready for the model.
pub trait Rows {
    fn train(&self) -> Side<'_>;
    fn valid(&self) -> Option<Side<'_>>;
    /// Tokens in the longest packed row of the first epoch.
    fn longest_row(&self) -> usize;
    /// Optimiser steps in so many epochs.
    fn steps_for(&self, epochs: f64) -> u64;
    /// Training rows that are the same.
    fn duplicates(&self) -> Duplicates;
    /// Validation rows that are also training rows.
    fn overlap(&self) -> Option<Overlap>;
    /// The first rows as the model sees them, with what is learnt.
    fn shown(&self, most: usize) -> Result<Vec<Example>>;
    /// The method over these rows.
    fn method(self: Box<Self>, model: &Model) -> Result<Box<dyn Method>>;
}

impl Ground<'_> {
    /// Training and validation items, told about as they are read.
    pub fn open<T: Item>(&self, supervise: Supervise) -> Result<(Dataset<T>, Option<Dataset<T>>)> {
        let options = EncodeOptions {
            supervise,
            max_len: self.max_len,
            on_overflow: self.on_overflow,
            overflow_tolerance: self.overflow_tolerance,
        };
        let load = |sources: &Sources| -> Result<Dataset<T>> {
            let rows = Dataset::open(sources, &self.tokenizer, &options, self.cache)?;
            report::info(rows.summary.line());
            rows.summary.mix_lines().iter().for_each(report::info);
            rows.summary.warnings().iter().for_each(report::warn);
            Ok(rows)
        };
        Ok((load(self.train)?, self.valid.map(load).transpose()?))
    }
}

impl<'a, T: Item> From<&'a Dataset<T>> for Side<'a> {
    fn from(rows: &'a Dataset<T>) -> Self {
        Self { summary: &rows.summary, lengths: rows.lengths() }
    }
}
