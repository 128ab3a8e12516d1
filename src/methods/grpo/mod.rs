//! Group-relative policy optimisation: answers are sampled in groups and rewarded; each is trained on by how much
//! better it is than its group. There is no value model. `rollout` decides what is sampled and when; this module says
//! how rewards become advantages, and what the loss is.

pub mod advantages;
pub mod loss;
pub mod spec;

pub use spec::GrpoSpec;

use super::rollout::advantages::{Advantages, RolloutRewards};
use super::rollout::method::{RolloutPlan, open_rows};
use super::rollout::objective::{LossUnit, PolicyLossInputs, PolicyObjective};
use super::rows::{DataContext, MethodRows};
use crate::error::Result;
use crate::models::Loss;
use crate::nn::head::TargetScores;
use spec::GrpoLoss;

/// GRPO with the settings of a recipe.
pub struct Grpo(pub GrpoSpec);

impl Grpo {
    /// Describes how sampled answers are trained on.
    pub fn plan(&self) -> RolloutPlan {
        let spec = &self.0;
        RolloutPlan {
            answers: spec.answers,
            passes: spec.passes,
            mini_batches: spec.mini_batches,
            mask_truncated: spec.mask_truncated,
            resample: spec.resample,
            reference: spec.needs_reference(),
            entropy: spec.entropy != 0.0,
            sparse: spec.beta == 0.0 && spec.entropy == 0.0,
            limits: spec.limits.clone(),
        }
    }
}

impl PolicyObjective for Grpo {
    fn advantages(&self, judged: &RolloutRewards) -> Advantages {
        advantages::advantages(judged, self.0.scale())
    }

    fn items(&self) -> LossUnit {
        if self.0.loss == GrpoLoss::Dapo { LossUnit::Tokens } else { LossUnit::Sequences }
    }

    fn loss(&self, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss {
        loss::loss(&self.0, self.0.sampling.max_new_tokens, scores, terms)
    }
}

/// Reads the prompts and opens the sources of rewards.
pub fn rows(spec: &GrpoSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    let rule = Grpo(spec.clone());
    let plan = rule.plan();
    open_rows(ground, "method.grpo", &spec.rewards, &spec.sampling, plan, rule)
}
