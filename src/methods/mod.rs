//! Methods: each says which micro-batches make the next optimiser step; a micro-batch is a packed row and a pure
//! function from the trunk's hidden states to a loss.
//!
//! rows: what a method reads before the model is there. fixed: all that methods which learn from fixed items share; one
//! of them says only how items become a batch (`Objective`). A method that makes its own data (reinforcement learning)
//! is a `Method` by itself.

pub mod distill;
pub mod dpo;
pub mod fixed;
pub mod grpo;
pub mod kto;
pub mod orpo;
pub mod pairs;
pub mod ppo;
pub mod rate;
pub mod reference;
pub mod reward;
pub mod rloo;
pub mod rollout;
pub mod rows;
pub mod sft;
pub mod simpo;
pub mod watch;

pub use fixed::{Fixed, Objective, Split, Which};
pub use rows::{Ground, Rows, Side};

use crate::adapters::{AdapterSpec, LoraSpec};
use crate::data::Cursor;
use crate::error::Result;
use crate::models::{Dtype, Heads, Loss, Model, Output};
use crate::nn::{Param, Tokens};
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
    /// A reward model: scores learnt from pairs of a better and a worse answer.
    Reward(reward::RewardSpec),
    /// Direct preference optimisation (arXiv 2305.18290) of pairs, against a reference.
    Dpo(dpo::DpoSpec),
    /// Kahneman-Tversky optimisation (arXiv 2402.01306) of answers judged one by one, against a reference.
    Kto(kto::KtoSpec),
    /// Odds-ratio preference optimisation (arXiv 2403.07691) of pairs: cross-entropy and preference in one.
    Orpo(orpo::OrpoSpec),
    /// Simple preference optimisation (arXiv 2405.14734) of pairs, by mean log-probabilities.
    Simpo(simpo::SimpoSpec),
    /// Group-relative policy optimisation: answers drawn in groups and judged, each learnt by how much better it is than
    /// its group (with the variants Dr. GRPO, DAPO and GSPO).
    Grpo(grpo::GrpoSpec),
    /// REINFORCE leave-one-out: as GRPO, each answer against the mean of the others, the KL divergence in the reward.
    Rloo(rloo::RlooSpec),
    /// Proximal policy optimisation: answers are drawn, rewarded, and made more or less likely.
    Ppo(Box<ppo::PpoSpec>),
    /// Distillation: a student learns a teacher's distributions on the supervised tokens.
    Distill(Box<distill::DistillSpec>),
}

impl MethodSpec {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft(_) => "sft",
            Self::Reward(_) => "reward",
            Self::Dpo(_) => "dpo",
            Self::Kto(_) => "kto",
            Self::Orpo(_) => "orpo",
            Self::Simpo(_) => "simpo",
            Self::Grpo(_) => "grpo",
            Self::Rloo(_) => "rloo",
            Self::Ppo(_) => "ppo",
            Self::Distill(_) => "distill",
        }
    }

    /// Whether it learns from items that are there before it begins; else it draws its own.
    pub fn fixed(&self) -> bool {
        !matches!(self, Self::Grpo(_) | Self::Rloo(_) | Self::Ppo(_))
    }

    /// It learns which of the model's answers are better, not what to answer.
    pub fn compares(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::Kto(_) | Self::Orpo(_) | Self::Simpo(_))
    }

    /// Whether its result writes text; a reward model only scores it.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Reward(_))
    }

    /// The models that a student learns from.
    pub fn teachers(&self) -> &[distill::TeacherSpec] {
        match self {
            Self::Distill(spec) => &spec.teachers,
            _ => &[],
        }
    }

    /// As `teachers`, to be changed.
    pub fn teachers_mut(&mut self) -> &mut [distill::TeacherSpec] {
        match self {
            Self::Distill(spec) => &mut spec.teachers,
            _ => &mut [],
        }
    }

    /// Reads and tokenises its rows.
    pub fn rows(&self, ground: &Ground) -> Result<Box<dyn Rows>> {
        match self {
            Self::Sft(spec) => sft::rows(spec, ground),
            Self::Reward(spec) => reward::rows(spec, ground),
            Self::Dpo(spec) => dpo::rows(spec, ground),
            Self::Kto(spec) => kto::rows(spec, ground),
            Self::Orpo(spec) => orpo::rows(spec, ground),
            Self::Simpo(spec) => simpo::rows(spec, ground),
            Self::Grpo(spec) => grpo::rows(spec, ground),
            Self::Rloo(spec) => rloo::rows(spec, ground),
            Self::Ppo(spec) => ppo::rows(spec, ground),
            Self::Distill(spec) => distill::rows(spec, ground),
        }
    }

    /// What its model is made of, beside the base and what is trained.
    pub fn parts(&self, adapter: Option<&AdapterSpec>) -> Result<Parts> {
        match self {
            Self::Sft(_) | Self::Orpo(_) | Self::Simpo(_) => Ok(Parts::default()),
            Self::Distill(spec) => distill::parts(spec),
            Self::Reward(_) => Ok(Parts { heads: Heads::Score, ..Parts::default() }),
            Self::Dpo(spec) => reference::parts(adapter, spec.reference),
            Self::Kto(spec) => reference::parts(adapter, spec.reference),
            Self::Grpo(spec) => rollout::parts(&spec.rewards, adapter, spec.compares()),
            Self::Rloo(spec) => rollout::parts(&spec.rewards, adapter, spec.compares()),
            Self::Ppo(spec) => ppo::parts(spec, adapter),
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
    /// The method holds a frozen copy of the base (a reference).
    pub copy: bool,
    /// Numbers in other frozen models that the method holds (teachers), by the dtype they have; `None`: the run's.
    pub others: Vec<(u64, Option<Dtype>)>,
    /// The float32 tables of logits that a chunk of the loss holds at once.
    pub tables: u64,
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
    /// What the method trains beside the model: no part of the result, so `state` must hold it.
    fn parameters(&self) -> Vec<Param> {
        Vec::new()
    }
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
