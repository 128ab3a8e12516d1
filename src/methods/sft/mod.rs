//! Supervised fine-tuning: next-token cross-entropy on the supervised tokens of each example.
//!
//! `loss = - sum over supervised t of log p(x_t | x_<t)`. The loop divides it by the number of supervised tokens of
//! the whole optimiser step.

pub mod spec;

pub use spec::SftSpec;

use super::fixed::{BatchIndices, FixedDataRows, Objective, Split};
use super::rows::{DataContext, MethodRows};
use super::targets::TargetTokens;
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
    /// The numbers of `at`, on the host.
    pub rows: Vec<i64>,
}

impl SupervisedBatch {
    /// Packs examples into one row.
    pub fn new(examples: &[&Example], device: Device) -> Self {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let supervised = |i: usize, t: usize| examples[i].supervised[t];
        let (tokens, TargetTokens { at, targets, rows, .. }) = TargetTokens::pack(&ids, supervised, device);
        Self { tokens, at, targets, rows }
    }

    /// Returns the number of supervised tokens in the row.
    pub fn target_count(&self) -> f64 {
        self.at.size()[0] as f64
    }
}

impl MicroBatch for SupervisedBatch {
    fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn items(&self) -> f64 {
        self.target_count()
    }

    /// Computes the summed cross-entropy; metrics: its mean, and the share of tokens that were the model's most likely
    /// one.
    fn loss(&self, out: &Output) -> Loss {
        let scores = out.log_probs(&self.at, &self.targets);
        let sum = -scores.log_probs.sum(Kind::Float);
        let mut metrics = Metrics::default();
        metrics.add("loss", &sum, self.target_count());
        metrics.add("accuracy", &scores.hits.sum(Kind::Float), self.target_count());
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

    fn batch(&mut self, model: &Model, items: &[Example], _: BatchIndices, _: &()) -> Result<Box<dyn MicroBatch>> {
        Ok(Box::new(SupervisedBatch::new(&items.iter().collect::<Vec<_>>(), model.device())))
    }
}

/// Reads and tokenises the rows of a run.
pub fn rows(spec: &SftSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    Ok(Box::new(FixedDataRows::open(ground, spec.supervise, |_| Ok(Sft))?))
}
