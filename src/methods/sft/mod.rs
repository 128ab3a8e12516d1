//! Supervised fine-tuning: next-token cross-entropy on the supervised tokens of each example.
//!
//! `loss = - sum over supervised t of log p(x_t | x_<t)`. The loop divides it by the number of supervised tokens of
//! the whole optimiser step.

pub mod spec;

pub use spec::SftSpec;

use super::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use super::rows::{DataContext, MethodRows};
use super::targets::{PaddedRow, TargetTokens};
use crate::data::dataset::Dataset;
use crate::data::encode::Example;
use crate::error::Result;
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// One packed row with its targets.
pub struct SupervisedBatch {
    /// The packed row.
    pub tokens: Tokens,
    /// (N) rows of the trunk's output that predict a supervised token.
    pub at: Tensor,
    /// (N) the tokens they must predict.
    pub targets: Tensor,
    /// (N) float32: 0 for targets that are padding, else 1. `None`: none is padding.
    pub weights: Option<Tensor>,
    /// The numbers of `at` without padding, on the host.
    pub rows: Vec<i64>,
    /// Number of tokens without padding.
    pub length: usize,
}

impl SupervisedBatch {
    /// Packs examples into one row.
    pub fn new(examples: &[&Example], device: Device) -> Self {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let supervised = |i: usize, t: usize| examples[i].supervised[t];
        let (tokens, TargetTokens { at, targets, rows, .. }) = TargetTokens::pack(&ids, supervised, device);
        let length = tokens.len();
        Self { tokens, at, targets, weights: None, rows, length }
    }

    /// Does the same, padded to one of few shapes ([`PaddedRow`]), so that the pass can be recorded.
    pub fn padded(examples: &[&Example], device: Device) -> Self {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let supervised = |i: usize, t: usize| examples[i].supervised[t];
        let PaddedRow { tokens, at, targets, weights, rows, length } = PaddedRow::pack(&ids, supervised, device);
        Self { tokens, at, targets, weights: Some(weights), rows, length }
    }

    /// Returns the number of supervised tokens in the row.
    pub fn target_count(&self) -> f64 {
        self.rows.len() as f64
    }
}

impl MicroBatch for SupervisedBatch {
    fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn token_count(&self) -> usize {
        self.length
    }

    fn items(&self) -> f64 {
        self.target_count()
    }

    fn recorded_inputs(&self) -> Option<Vec<&Tensor>> {
        let Tokens { ids, positions, segments, .. } = &self.tokens;
        Some(vec![ids, positions, &segments.bounds, &self.at, &self.targets, self.weights.as_ref()?])
    }

    /// Computes the summed cross-entropy; metrics: its mean, and the share of tokens that were the model's most likely
    /// one.
    fn loss(&self, out: &Output) -> Loss {
        let scores = out.log_probs(&self.at, &self.targets);
        let sum_of = |values: Tensor| match &self.weights {
            Some(weights) => (values * weights).sum(Kind::Float),
            None => values.sum(Kind::Float),
        };
        let sum = -sum_of(scores.log_probs);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.target_count());
        metrics.add("accuracy", &sum_of(scores.hits), self.target_count());
        Loss { sum, metrics }
    }
}

/// The objective of supervised fine-tuning.
pub struct Sft;

impl Objective for Sft {
    type Item = Example;
    type Shared = ();

    fn prepare_batches(&mut self, _: &Model, _: Split, _: &Dataset, _: &[Vec<usize>]) -> Result<()> {
        Ok(())
    }

    fn batch(&mut self, model: &Model, items: &[Example], which: BatchIndices, _: &()) -> Result<Box<dyn MicroBatch>> {
        let items: Vec<&Example> = items.iter().collect();
        let padded = model.records_passes() && which.split == Split::Train;
        let make = if padded { SupervisedBatch::padded } else { SupervisedBatch::new };
        Ok(Box::new(make(&items, model.device())))
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &SftSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    Ok(Box::new(FixedDataRows::open(ground, spec.supervise, |_| Ok(Sft))?))
}
