//! The interface between the training loop and a method: a method makes the micro-batches of each optimiser step, the
//! loop runs them. A micro-batch is a packed row together with a pure function from the trunk's hidden states to a
//! loss.

use super::state::StateTensors;
use crate::data::batch::LoaderCursor;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::learning::MicroBatch;
use crate::nn::Param;
use std::collections::BTreeMap;
use std::path::Path;

/// Micro-batches, made one at a time as they are asked for.
pub type MicroBatches = Box<dyn Iterator<Item = Result<Box<dyn MicroBatch>>>>;

/// The micro-batches of one optimiser step.
pub struct TrainingStep {
    /// Number of items of all micro-batches together, which the loss is divided by.
    pub items: f64,
    /// The micro-batches. Each should be dropped after its backward, before the next one is asked for.
    pub micro_batches: MicroBatches,
    /// Epochs done after this step.
    pub epoch: f64,
    /// Metrics that became known while the step was made (for a rollout: rewards, lengths), logged with the step.
    pub means: Vec<(String, f64)>,
}

impl TrainingStep {
    /// Creates a step from micro-batches that exist already.
    pub fn of(batches: Vec<Box<dyn MicroBatch>>, epoch: f64) -> Self {
        let items = batches.iter().map(|b| b.items()).sum();
        Self { items, micro_batches: Box::new(batches.into_iter().map(Ok)), epoch, means: Vec::new() }
    }
}

/// What the last two steps were made from, for [`Method::repeat_step`]. Two are needed because the numbers of a step are
/// read while the next one runs.
pub struct RecentSteps<T>([Option<T>; 2]);

impl<T> Default for RecentSteps<T> {
    fn default() -> Self {
        Self([None, None])
    }
}

impl<T> RecentSteps<T> {
    /// Adds the newest step.
    pub fn push(&mut self, step: T) {
        self.0.swap(0, 1);
        self.0[0] = Some(step);
    }

    /// Returns the newest step (`back` 0) or the one before (1).
    pub fn get(&self, back: usize) -> Result<&T> {
        self.0.get(back).and_then(Option::as_ref).ok_or_else(|| Error::bug("a step that was not made"))
    }
}

/// Numbers by name.
pub type Means = BTreeMap<String, f64>;

/// The validation metric that decides which checkpoint is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectionMetric {
    /// The name of the metric.
    pub metric: &'static str,
    /// True if a larger value is better.
    pub higher: bool,
}

impl SelectionMetric {
    /// The loss; a smaller one is better.
    pub const LOSS: Self = Self { metric: "loss", higher: false };

    /// Returns true if `value` is better than `best`.
    pub fn better(self, value: f64, best: f64) -> bool {
        if self.higher { value > best } else { value < best }
    }
}

/// Something wrong with the run, found in the numbers of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What is wrong and why; reported once.
    pub cause: String,
    /// What to try next.
    pub next: String,
    /// If true, the run ends here and keeps its best checkpoint.
    pub stop: bool,
}

/// The beginning of a row, which the model completes now and then during the run so that a person can look at samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplePrompt {
    /// The token ids of the beginning.
    pub ids: Vec<u32>,
    /// How the row continues; empty if the row does not say.
    pub answer: Vec<u32>,
}

/// The interface between the training loop and a method.
pub trait Method {
    /// Returns the micro-batches of the next optimiser step.
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep>;
    /// Returns true if `next_step` reads results of the device before it returns (to sample answers): the loop then
    /// reads the numbers of the last step first, because that takes no extra time.
    fn next_step_waits(&self) -> bool {
        false
    }
    /// Returns the micro-batches of an earlier step once more, to look for the first tensor that is not finite: of the
    /// step that `next_step` returned last (`back` 0), or of the one before (1). Changes no state.
    fn repeat_step(&mut self, model: &Model, back: usize) -> Result<TrainingStep>;
    /// Computes means over the validation rows. `None`: there are no validation rows.
    fn validate(&mut self, model: &Model) -> Result<Option<Means>>;
    /// Returns which of the validation means selects the best checkpoint.
    fn selection_metric(&self) -> SelectionMetric {
        SelectionMetric::LOSS
    }
    /// Looks for problems in the means of a step (its loss and the method's own metrics).
    fn alarms(&mut self, _means: &Means) -> Vec<Alarm> {
        Vec::new()
    }
    /// Returns at most `most` prompts to show samples of: from validation rows, or from training rows if there are
    /// none.
    fn prompts(&self, most: usize) -> Vec<SamplePrompt>;
    /// Returns the number of optimiser steps in `epochs` epochs.
    fn steps_for(&self, epochs: f64) -> u64;
    /// Returns the position in the data, for a checkpoint.
    fn cursor(&self) -> LoaderCursor;
    /// Moves to a position that `cursor` returned.
    fn rewind(&mut self, at: LoaderCursor) -> Result<()>;
    /// Returns what the method trains in addition to the model. It is no part of the result, so `state` must contain
    /// it.
    fn parameters(&self) -> Vec<Param> {
        Vec::new()
    }
    /// Returns what a checkpoint must store of the method in addition to the cursor.
    fn state(&self) -> StateTensors {
        StateTensors::new()
    }
    /// Restores what `state` returned. Called after `rewind`.
    fn restore(&mut self, _state: StateTensors) -> Result<()> {
        Ok(())
    }
    /// Reports on the result. Called when it is written to `out`; `model` has the result's weights.
    fn finish(&mut self, _model: &Model, _out: &Path) -> Result<()> {
        Ok(())
    }
}
