//! Methods: each says which micro-batches make the next optimiser step; a micro-batch is a packed row and a pure
//! function from the trunk's hidden states to a loss.
//!
//! rows: what a method reads before the model is there. fixed: all that methods which learn from fixed items share; one
//! of them says only how items become a batch (`Objective`). A method that makes its own data (reinforcement learning)
//! is a `Method` by itself.

pub mod distill;
pub mod fixed;
pub mod rows;
pub mod sft;

pub use fixed::{Fixed, Objective, Split, Which};
pub use rows::{Ground, Rows, Side};

use crate::adapters::{AdapterSpec, LoraSpec};
use crate::data::Cursor;
use crate::error::Result;
use crate::models::{Heads, Loss, Model, Output};
use crate::nn::Tokens;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The methods a recipe can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MethodSpec {
    /// Supervised fine-tuning: cross-entropy on the supervised tokens.
    Sft(sft::SftSpec),
    /// Distillation: a student learns a teacher's distributions on the supervised tokens.
    Distill(distill::DistillSpec),
}

impl MethodSpec {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft(_) => "sft",
            Self::Distill(_) => "distill",
        }
    }

    /// Reads and tokenises its rows.
    pub fn rows(&self, ground: &Ground) -> Result<Box<dyn Rows>> {
        match self {
            Self::Sft(spec) => sft::rows(spec, ground),
            Self::Distill(spec) => distill::rows(spec, ground),
        }
    }

    /// What its model is made of, beside the base and what is trained.
    pub fn parts(&self, _adapter: Option<&AdapterSpec>) -> Result<Parts> {
        match self {
            Self::Sft(_) | Self::Distill(_) => Ok(Parts::default()),
        }
    }
}

/// The name of the adapter that a recipe trains.
pub const ADAPTER: &str = "default";

/// What a method's model is made of, beside the base and the trained adapter.
#[derive(Debug, Default)]
pub struct Parts {
    pub heads: Heads,
    pub beside: Vec<Beside>,
}

/// An adapter beside the trained one, on the same base.
#[derive(Debug, Clone)]
pub struct Beside {
    pub name: &'static str,
    pub spec: LoraSpec,
    /// Where its weights come from; `None`: it begins anew.
    pub folder: Option<PathBuf>,
    /// Trained too, or frozen.
    pub trained: bool,
}

/// What one pass of the trunk learns: a packed row, and a pure function from its hidden states to a loss.
pub trait Batch {
    /// What the trunk must see.
    fn tokens(&self) -> &Tokens;
    /// How many items the loss sums over. The loop counts them over the whole optimiser step and divides once.
    fn items(&self) -> f64;
    /// The SUM of the loss over the items; pure.
    fn loss(&self, out: &Output) -> Loss;
    /// The adapter that the trunk runs under; `None`: the one that is switched on.
    fn adapter(&self) -> Option<&str> {
        None
    }
}

/// The micro-batches of one optimiser step.
pub struct Step {
    pub micro: Vec<Box<dyn Batch>>,
    /// Epochs done after this step.
    pub epoch: f64,
    /// What making the step has told (of a rollout: rewards, lengths), logged with the step.
    pub means: Vec<(String, f64)>,
}

/// Numbers by name.
pub type Means = BTreeMap<String, f64>;

/// The validation metric that decides which checkpoint is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    pub metric: &'static str,
    pub higher: bool,
}

impl Aim {
    pub const LOSS: Self = Self { metric: "loss", higher: false };

    /// Whether `value` is better than `best`.
    pub fn better(self, value: f64, best: f64) -> bool {
        if self.higher { value > best } else { value < best }
    }
}

/// Something wrong with the run, found in the numbers of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What is wrong and why; told once.
    pub cause: String,
    /// The next thing to try.
    pub next: String,
    /// The run ends here and keeps its best checkpoint.
    pub stop: bool,
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
    /// The micro-batches of the next optimiser step.
    fn next_step(&mut self, model: &Model) -> Result<Step>;
    /// Means over the validation rows. `None`: there are no such rows.
    fn validate(&mut self, model: &Model) -> Result<Option<Means>>;
    /// Which of them decides.
    fn aim(&self) -> Aim {
        Aim::LOSS
    }
    /// What the means of a step (its loss, the method's own) say is wrong.
    fn alarms(&mut self, _means: &Means) -> Vec<Alarm> {
        Vec::new()
    }
    /// Prompts of validation rows (of training rows where there are none) to show samples of.
    fn prompts(&self, most: usize) -> Vec<Prompt>;
    /// Optimiser steps in so many epochs.
    fn steps_for(&self, epochs: f64) -> u64;
    /// Where the data stands.
    fn cursor(&self) -> Cursor;
    /// Goes back to where the data stood.
    fn rewind(&mut self, at: Cursor) -> Result<()>;
    /// What a checkpoint must hold of the method beside the cursor.
    fn state(&self) -> BTreeMap<String, Tensor> {
        BTreeMap::new()
    }
    /// Takes back what `state` gave; called after `rewind`.
    fn restore(&mut self, _state: BTreeMap<String, Tensor>) -> Result<()> {
        Ok(())
    }
    /// The result is written to `out`, and the model holds it: reports on it.
    fn finish(&mut self, _model: &Model, _out: &Path) -> Result<()> {
        Ok(())
    }
}
