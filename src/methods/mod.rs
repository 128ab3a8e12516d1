//! Training methods (`sft`, `dpo`, `ppo`, ...). A method decides which micro-batches make the next optimiser step. A
//! micro-batch is a packed row together with a pure function from the trunk's hidden states to a loss.
//!
//! Modules that methods share:
//! - `contract`: the interface between the training loop and a method ([`Method`](contract::Method)).
//! - `rows`: what a method reads before the model is loaded. `parts`: what its model consists of besides the base and
//!   the trained adapter. `state`: its tensors in a checkpoint.
//! - `fixed`: everything common to methods that train on a given data set; such a method only implements
//!   [`Objective`](fixed::Objective), which turns items into a batch.
//! - `pair_objective`: the same for methods on pairs of answers, which only implement a loss
//!   ([`PairLoss`](pair_objective::PairLoss)).
//! - `targets`, `pairs`: the tokens that a loss predicts; answers in a packed row and their log-probabilities.
//!   `reference`: the reference model.
//! - `watch`: alarms from the metrics of steps. `preference_alarms`: those of preference training.
//! - `rollout`: everything common to methods that sample their own answers (reinforcement learning). Such a method
//!   implements `Method` directly (PPO) or through `rollout` (GRPO, RLOO).

pub mod contract;
pub mod distill;
pub mod dpo;
pub mod fixed;
pub mod grpo;
pub mod kto;
pub mod orpo;
pub mod pair_objective;
pub mod pairs;
pub mod parts;
pub mod ppo;
pub mod preference_alarms;
pub mod reference;
pub mod reward;
pub mod rloo;
pub mod rollout;
pub mod rows;
pub mod sft;
pub mod simpo;
pub mod state;
pub mod targets;
pub mod watch;

use crate::adapters::AdapterSpec;
use crate::error::Result;
use crate::models::Heads;
use parts::ModelParts;
use rows::{DataContext, MethodRows};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    Ppo(Box<ppo::spec::PpoSpec>),
    /// Distillation: a student is trained on a teacher's distributions over the supervised tokens.
    Distill(Box<distill::spec::DistillSpec>),
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

    /// Returns true if forward and backward of its batches can be recorded (`MicroBatch::recorded_inputs`).
    pub fn passes_can_be_recorded(&self) -> bool {
        matches!(self, Self::Sft(_))
    }

    /// Returns true if the trained model generates text; a reward model only scores it.
    pub fn generates_text(&self) -> bool {
        !matches!(self, Self::Reward(_))
    }

    /// Returns the models that a student is distilled from; empty for other methods.
    pub fn teachers(&self) -> &[distill::spec::TeacherSpec] {
        match self {
            Self::Distill(spec) => &spec.teachers,
            _ => &[],
        }
    }

    /// Returns the same as `teachers`, mutable.
    pub fn teachers_mut(&mut self) -> &mut [distill::spec::TeacherSpec] {
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
            Self::Ppo(spec) => ppo::method::rows(spec, ground),
            Self::Distill(spec) => distill::objective::rows(spec, ground),
        }
    }

    /// Returns what the method's model consists of, besides the base and the trained adapter.
    pub fn parts(&self, adapter: Option<&AdapterSpec>) -> Result<ModelParts> {
        match self {
            Self::Sft(_) | Self::Orpo(_) | Self::Simpo(_) => Ok(ModelParts::default()),
            Self::Distill(spec) => distill::objective::parts(spec),
            Self::Reward(_) => Ok(ModelParts { heads: Heads::Score, ..ModelParts::default() }),
            Self::Dpo(spec) => reference::parts(adapter, spec.reference),
            Self::Kto(spec) => reference::parts(adapter, spec.reference),
            Self::Grpo(spec) => {
                let parts = rollout::reward_models::parts(&spec.rewards, adapter, spec.needs_reference())?;
                Ok(ModelParts { sampled: spec.sampling.sampled(spec.answers), ..parts })
            }
            Self::Rloo(spec) => {
                let parts = rollout::reward_models::parts(&spec.rewards, adapter, spec.needs_reference())?;
                Ok(ModelParts { sampled: spec.sampling.sampled(spec.answers), ..parts })
            }
            Self::Ppo(spec) => ppo::parts::parts(spec, adapter),
        }
    }
}
