//! REINFORCE leave-one-out: an answer's advantage is its reward minus the mean reward of the other answers to the
//! prompt; the KL divergence from the reference is part of the reward.

pub mod advantages;
pub mod loss;
pub mod spec;

pub use spec::RlooSpec;

use super::rollout::advantages::{Advantages, RolloutRewards};
use super::rollout::method::{RolloutPlan, open_rows};
use super::rollout::objective::{LossUnit, PolicyLossInputs, PolicyObjective};
use super::rows::{DataContext, MethodRows};
use crate::error::{Error, Result};
use crate::models::Loss;
use crate::nn::head::TargetScores;

/// RLOO with the settings of a recipe.
pub struct Rloo(pub RlooSpec);

impl Rloo {
    /// Describes how sampled answers are trained on.
    pub fn plan(&self) -> RolloutPlan {
        let spec = &self.0;
        RolloutPlan {
            answers: spec.answers,
            passes: spec.passes,
            mini_batches: spec.mini_batches,
            mask_truncated: spec.mask_truncated,
            resample: 0,
            reference: spec.needs_reference(),
            entropy: false,
            sparse: true,
            limits: spec.limits.clone(),
        }
    }
}

impl PolicyObjective for Rloo {
    fn advantages(&self, judged: &RolloutRewards) -> Advantages {
        advantages::advantages(&self.0, judged)
    }

    fn items(&self) -> LossUnit {
        LossUnit::Sequences
    }

    fn loss(&self, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss {
        loss::loss(&self.0, scores, terms)
    }
}

/// Reads the prompts and opens the sources of rewards.
pub fn rows(spec: &RlooSpec, ground: &DataContext) -> Result<Box<dyn MethodRows>> {
    if let Some([least, most]) = spec.reward_clip.filter(|[least, most]| least >= most) {
        return Err(Error::user(format!("method.rloo.reward_clip: {least} is not below {most}"))
            .hint("write the minimum and the maximum, such as [-5, 5]"));
    }
    let rule = Rloo(spec.clone());
    let plan = rule.plan();
    open_rows(ground, "method.rloo", &spec.rewards, &spec.sampling, plan, rule)
}
