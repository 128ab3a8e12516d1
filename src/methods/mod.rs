//! Methods: each says which micro-batches make the next optimiser step, and is otherwise a pure function
//! from the trunk's hidden states to a loss.

pub mod dpo;
pub mod kto;
pub mod orpo;
pub mod pairs;
pub mod reference;
pub mod sft;
pub mod simpo;

use crate::data::Cursor;
use crate::error::Result;
use crate::models::{Loss, Metrics, Model, Output};
use crate::nn::Tokens;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The methods a recipe can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodSpec {
    /// Supervised fine-tuning: cross-entropy on the supervised tokens.
    Sft(sft::SftSpec),
}

/// The micro-batches of one optimiser step.
pub struct Step<B> {
    pub micro: Vec<B>,
    /// Epochs done after this step.
    pub epoch: f64,
}

/// The beginning of a row, to be answered while the run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// What the row goes on with; empty where it does not tell.
    pub answer: Vec<u32>,
}

/// What the loop asks of a method.
pub trait Method {
    type Batch;

    /// The micro-batches of the next optimiser step.
    fn next_step(&mut self, model: &Model) -> Result<Step<Self::Batch>>;
    /// What the trunk must see.
    fn tokens<'b>(&self, batch: &'b Self::Batch) -> &'b Tokens;
    /// How many items the loss of this micro-batch sums over.
    fn items(&self, batch: &Self::Batch) -> f64;
    /// The SUM of the loss over the micro-batch's items; pure.
    fn loss(&self, out: &Output, batch: &Self::Batch) -> Loss;
    /// Metrics on the validation rows; their `loss` decides which checkpoint is best. `None`: there are no such rows.
    fn validate(&mut self, model: &Model) -> Result<Option<Metrics>>;
    /// Prompts of validation rows (of training rows where there are none) to show samples of.
    fn prompts(&self, most: usize) -> Vec<Prompt>;
    /// Optimiser steps in so many epochs.
    fn steps_for(&self, epochs: f64) -> u64;
    /// Where the data stands; all that a checkpoint needs of the method.
    fn cursor(&self) -> Cursor;
    /// Goes back to where the data stood.
    fn rewind(&mut self, at: Cursor) -> Result<()>;
}
