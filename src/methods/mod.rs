//! Training methods (`sft`, `dpo`, `ppo`, ...). A method decides which micro-batches make the next optimiser step. A
//! micro-batch is a packed row together with a pure function from the trunk's hidden states to a loss.
//!
//! Modules that methods share:
//! - `rows`: what a method reads before the model is loaded.
//! - `fixed`: everything common to methods that train on a given data set; such a method only implements
//!   [`Objective`], which turns items into a batch.
//! - `pairs`, `reference`, `preference_alarms`: packed answers, the reference model, and alarms for preference training.
//! - `rollout`: everything common to methods that sample their own answers (reinforcement learning). Such a method
//!   implements [`Method`] directly or through `rollout`.

pub mod distill;
pub mod dpo;
pub mod fixed;
pub mod grpo;
pub mod kto;
pub mod orpo;
pub mod pairs;
pub mod ppo;
pub mod preference_alarms;
pub mod reference;
pub mod reward;
pub mod rloo;
pub mod rollout;
pub mod rows;
pub mod sft;
pub mod simpo;

pub use fixed::{BatchIndices, FixedDataMethod, Objective, Split};
pub use rows::{DataContext, MethodRows, SplitStatistics};

pub use crate::models::MicroBatch;

use crate::adapters::{AdapterSpec, LoraSpec};
use crate::data::batch::LoaderCursor;
use crate::error::Result;
use crate::models::{Dtype, Heads, Model};
use crate::nn::Param;
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
    /// A reward model: scores trained on pairs of a better and a worse answer.
    Reward(reward::RewardMethodSpec),
    /// Direct preference optimisation (arXiv 2305.18290) on pairs, against a reference model.
    Dpo(dpo::DpoSpec),
    /// Kahneman-Tversky optimisation (arXiv 2402.01306) on answers labelled one by one, against a reference model.
    Kto(kto::KtoSpec),
    /// Odds-ratio preference optimisation (arXiv 2403.07691) on pairs: cross-entropy and preference in one loss.
    Orpo(orpo::OrpoSpec),
    /// Simple preference optimisation (arXiv 2405.14734) on pairs, by mean log-probabilities.
    Simpo(simpo::SimpoSpec),
    /// Group-relative policy optimisation: answers are sampled in groups and rewarded; each is trained on by how much
    /// better it is than its group (with the variants Dr. GRPO, DAPO and GSPO).
    Grpo(grpo::GrpoSpec),
    /// REINFORCE leave-one-out: like GRPO, but each answer is compared with the mean of the others, and the KL
    /// divergence is part of the reward.
    Rloo(rloo::RlooSpec),
    /// Proximal policy optimisation: answers are sampled, rewarded, and made more or less likely.
    Ppo(Box<ppo::PpoSpec>),
    /// Distillation: a student is trained on a teacher's distributions over the supervised tokens.
    Distill(Box<distill::DistillSpec>),
}

impl MethodSpec {
    /// Returns the method's key in a recipe.
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

    /// Returns true if the method trains on a given data set, false if it samples its own answers.
    pub fn fixed(&self) -> bool {
        !matches!(self, Self::Grpo(_) | Self::Rloo(_) | Self::Ppo(_))
    }

    /// Returns true if the method trains on which answers are better, not on what to answer.
    pub fn learns_preferences(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::Kto(_) | Self::Orpo(_) | Self::Simpo(_))
    }

    /// Returns true if the trained model generates text; a reward model only scores it.
    pub fn generates_text(&self) -> bool {
        !matches!(self, Self::Reward(_))
    }

    /// Returns the models that a student is distilled from; empty for other methods.
    pub fn teachers(&self) -> &[distill::TeacherSpec] {
        match self {
            Self::Distill(spec) => &spec.teachers,
            _ => &[],
        }
    }

    /// Returns the same as `teachers`, mutable.
    pub fn teachers_mut(&mut self) -> &mut [distill::TeacherSpec] {
        match self {
            Self::Distill(spec) => &mut spec.teachers,
            _ => &mut [],
        }
    }

    /// Reads and tokenises the method's rows.
    pub fn rows(&self, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
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

    /// Returns what the method's model consists of, besides the base and the trained adapter.
    pub fn parts(&self, adapter: Option<&AdapterSpec>) -> Result<ModelParts> {
        match self {
            Self::Sft(_) | Self::Orpo(_) | Self::Simpo(_) => Ok(ModelParts::default()),
            Self::Distill(spec) => distill::parts(spec),
            Self::Reward(_) => Ok(ModelParts { heads: Heads::Score, ..ModelParts::default() }),
            Self::Dpo(spec) => reference::parts(adapter, spec.reference),
            Self::Kto(spec) => reference::parts(adapter, spec.reference),
            Self::Grpo(spec) => rollout::parts(&spec.rewards, adapter, spec.needs_reference()),
            Self::Rloo(spec) => rollout::parts(&spec.rewards, adapter, spec.needs_reference()),
            Self::Ppo(spec) => ppo::parts(spec, adapter),
        }
    }
}

/// The name of the adapter that a recipe trains.
pub const TRAINED_ADAPTER: &str = "default";

/// Describes what a method's model consists of, besides the base and the trained adapter.
#[derive(Debug, Default)]
pub struct ModelParts {
    pub heads: Heads,
    pub extra_adapters: Vec<ExtraAdapter>,
    /// True if the method holds a frozen copy of the base (as its reference model).
    pub reference_copy: bool,
    /// Sizes of other frozen models that the method holds (teachers): number of parameters and their dtype; `None`:
    /// the run's dtype.
    pub other_models: Vec<(u64, Option<Dtype>)>,
    /// How many float32 tables of logits one chunk of the loss holds at the same time.
    pub tables: u64,
}

/// An adapter next to the trained one, on the same base.
#[derive(Debug, Clone)]
pub struct ExtraAdapter {
    pub name: &'static str,
    pub spec: LoraSpec,
    /// The folder of its weights; `None`: newly initialised.
    pub folder: Option<PathBuf>,
    /// True if it is trained too, false if it is frozen.
    pub trained: bool,
}

/// The micro-batches of one optimiser step.
pub struct TrainingStep {
    pub micro_batches: Vec<Box<dyn MicroBatch>>,
    /// Epochs done after this step.
    pub epoch: f64,
    /// Metrics that became known while the step was made (for a rollout: rewards, lengths), logged with the step.
    pub means: Vec<(String, f64)>,
}

/// Numbers by name.
pub type Means = BTreeMap<String, f64>;

/// The validation metric that decides which checkpoint is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectionMetric {
    pub metric: &'static str,
    pub higher: bool,
}

impl SelectionMetric {
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
    pub ids: Vec<u32>,
    /// How the row continues; empty if the row does not say.
    pub answer: Vec<u32>,
}

/// The interface between the training loop and a method.
pub trait Method {
    /// Returns the micro-batches of the next optimiser step.
    fn next_step(&mut self, model: &Model) -> Result<TrainingStep>;
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
    fn state(&self) -> BTreeMap<String, Tensor> {
        BTreeMap::new()
    }
    /// Restores what `state` returned. Called after `rewind`.
    fn restore(&mut self, _state: BTreeMap<String, Tensor>) -> Result<()> {
        Ok(())
    }
    /// Reports on the result. Called when it is written to `out`; `model` has the result's weights.
    fn finish(&mut self, _model: &Model, _out: &Path) -> Result<()> {
        Ok(())
    }
}
