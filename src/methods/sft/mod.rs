//! Supervised fine-tuning: next-token cross-entropy on the supervised tokens of each example.
//!
//! `loss = - sum over supervised t of log p(x_t | x_<t)`, divided by the loop by the number of supervised tokens of
//! the whole optimiser step.

pub mod spec;
pub use spec::SftSpec;

use super::{Method, Prompt, Step};
use crate::data::{Cursor, Dataset, Example, Loader};
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// The method over tokenised examples.
pub struct Sft {
    train: Dataset,
    valid: Option<Dataset>,
    loader: Loader,
    /// Tokens in one packed validation row.
    budget: usize,
}

/// One packed row with its targets.
pub struct Batch {
    pub tokens: Tokens,
    /// (N) rows of the trunk's output that predict a supervised token.
    pub at: Tensor,
    /// (N) the tokens they must predict.
    pub targets: Tensor,
}

impl Batch {
    /// Packs examples into one row.
    pub fn new(examples: &[&Example], device: Device) -> Self {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let (mut at, mut targets, mut start) = (Vec::new(), Vec::new(), 0i64);
        for e in examples {
            // The first token of an example has nothing before it to be predicted from.
            for t in (1..e.ids.len()).filter(|&t| e.supervised[t]) {
                at.push(start + t as i64 - 1);
                targets.push(e.ids[t] as i64);
            }
            start += e.ids.len() as i64;
        }
        Self {
            tokens: Tokens::pack(&ids, device),
            at: Tensor::from_slice(&at).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }

    /// Supervised tokens in the row.
    pub fn supervised(&self) -> f64 {
        self.at.size()[0] as f64
    }
}

/// Some examples of a dataset as one packed row.
fn batch(examples: &Dataset, row: &[usize], device: Device) -> Result<Batch> {
    let examples = row.iter().map(|&i| examples.get(i)).collect::<Result<Vec<_>>>()?;
    Ok(Batch::new(&examples.iter().collect::<Vec<_>>(), device))
}

/// The summed cross-entropy of one row, with its mean and the share of tokens that were the most likely one.
pub fn cross_entropy(out: &Output, batch: &Batch) -> Loss {
    let scores = out.log_probs(&batch.at, &batch.targets);
    let sum = -scores.log_probs.sum(Kind::Float);
    let mut metrics = Metrics::default();
    metrics.add("loss", &sum, batch.supervised());
    metrics.add("accuracy", &scores.hits.sum(Kind::Float), batch.supervised());
    Loss { sum, metrics }
}

impl Sft {
    /// `loader` walks over `train`; validation rows are packed to `budget` tokens.
    pub fn new(train: Dataset, valid: Option<Dataset>, loader: Loader, budget: usize) -> Self {
        Self { train, valid, loader, budget }
    }
}

impl Method for Sft {
    type Batch = Batch;

    fn next_step(&mut self, model: &Model) -> Result<Step<Batch>> {
        let step = self.loader.next();
        let row = |row: &Vec<usize>| batch(&self.train, row, model.device());
        Ok(Step { micro: step.rows.iter().map(row).collect::<Result<_>>()?, epoch: step.epoch })
    }

    fn tokens<'b>(&self, batch: &'b Batch) -> &'b Tokens {
        &batch.tokens
    }

    fn items(&self, batch: &Batch) -> f64 {
        batch.supervised()
    }

    fn loss(&self, out: &Output, batch: &Batch) -> Loss {
        cross_entropy(out, batch)
    }

    fn validate(&mut self, model: &Model) -> Result<Option<Metrics>> {
        let Some(valid) = &self.valid else { return Ok(None) };
        let order: Vec<u32> = (0..valid.len() as u32).collect();
        let mut metrics = Metrics::default();
        for row in crate::data::pack(valid.lengths(), &order, self.budget) {
            let batch = batch(valid, &row, model.device())?;
            metrics.merge(model.infer(&batch.tokens, |out| cross_entropy(out, &batch))?.metrics);
        }
        Ok(Some(metrics))
    }

    fn prompts(&self, most: usize) -> Vec<Prompt> {
        let prompt = |e: Example| {
            let from = e.supervised.iter().position(|s| *s).unwrap_or(e.ids.len());
            let to = e.supervised[from..].iter().position(|s| !s).map_or(e.ids.len(), |n| from + n);
            Prompt { ids: e.ids[..from].to_vec(), answer: e.ids[from..to].to_vec() }
        };
        let rows = self.valid.as_ref().filter(|v| !v.is_empty()).unwrap_or(&self.train);
        rows.iter().flatten().map(prompt).filter(|p| !p.ids.is_empty()).take(most).collect()
    }

    fn steps_for(&self, epochs: f64) -> u64 {
        self.loader.steps_for(epochs)
    }

    fn cursor(&self) -> Cursor {
        self.loader.cursor()
    }

    fn rewind(&mut self, at: Cursor) -> Result<()> {
        self.loader.rewind(at)
    }
}
