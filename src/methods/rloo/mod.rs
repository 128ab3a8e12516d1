//! REINFORCE leave-one-out: an answer's advantage is its reward minus the mean reward of the other answers to the
//! prompt; the KL divergence from the reference is part of the reward.
//!
//! With R_i = clip(reward_i) - beta Σ_t (old - reference), k answers to a prompt, r_i = exp(Σ_t (new - old)):
//!
//! ```text
//! A_i  = R_i - 1/(k-1) Σ_{j≠i} R_j                               Ahmadian et al. 2024, arXiv 2402.14740, the RLOO estimator
//! loss = - 1/n Σ_i min( r_i A_i, clip(r_i, 1 - e, 1 + e_high) A_i )
//! ```
//!
//! Departure from the paper, as in TRL: the ratio r. With one optimiser step per round of sampling it is 1, and the
//! gradient is that of REINFORCE.

pub mod spec;

pub use spec::RlooSpec;

use super::grpo::advantage::NONE;
use super::grpo::loss::add_clip_metrics;
use super::rollout::objective::{Advantages, LossUnit, RolloutRewards};
use super::rollout::sampling_method::RolloutPlan;
use super::rollout::{PolicyLossInputs, PolicyObjective, rows};
use super::{DataContext, MethodRows};
use crate::error::{Error, Result};
use crate::models::{Loss, Metrics};
use crate::nn::head::TargetScores;
use crate::stats::moments::{mean, sample_deviation};
use tch::Kind;

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
    fn advantages(&self, drawn: &RolloutRewards) -> Advantages {
        let spec = &self.0;
        let [least, most] = spec.reward_clip.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let mut rewards: Vec<f64> = drawn.rewards.iter().map(|r| r.clamp(least, most)).collect();
        let mut more = Vec::new();
        if let Some(kl) = drawn.kl.filter(|_| spec.beta != 0.0) {
            rewards.iter_mut().zip(kl).for_each(|(r, kl)| *r -= spec.beta * kl);
            more.push(("kl".into(), kl.iter().sum::<f64>() / drawn.lengths.iter().sum::<f64>()));
        }
        let (mut values, mut flat) = (Vec::with_capacity(rewards.len()), 0);
        for group in rewards.chunks(drawn.answers_per_prompt) {
            let same = sample_deviation(group) < NONE;
            flat += if same { group.len() } else { 0 };
            let (sum, others) = (group.iter().sum::<f64>(), (group.len() - 1).max(1) as f64);
            values.extend(group.iter().map(|r| if same { 0.0 } else { r - (sum - r) / others }));
        }
        if spec.normalize_advantages {
            let (middle, spread) = (mean(&values), sample_deviation(&values));
            values.iter_mut().for_each(|a| *a = (*a - middle) / (spread + 1e-4));
        }
        Advantages { uniform_share: flat as f64 / values.len().max(1) as f64, values, more }
    }

    fn items(&self) -> LossUnit {
        LossUnit::Sequences
    }

    fn loss(&self, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss {
        let ratio = terms.sum_per_answer(&(&scores.log_probs - terms.old)).exp(); // (S)
        let (low, high) = (self.0.epsilon, self.0.epsilon_high.unwrap_or(self.0.epsilon));
        let clipped = ratio.clamp(1.0 - low, 1.0 + high);
        let sum = -(&ratio * terms.advantages).minimum(&(clipped * terms.advantages)).sum(Kind::Float);
        let is_low = ratio.lt(1.0 - low).logical_and(&terms.advantages.lt(0.0)).to_kind(Kind::Float);
        let is_high = ratio.gt(1.0 + high).logical_and(&terms.advantages.gt(0.0)).to_kind(Kind::Float);
        let mut metrics = Metrics::default();
        let (_, answers) = terms.counts();
        add_clip_metrics(&mut metrics, terms, &is_low, &is_high, answers);
        Loss { sum, metrics }
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
    rows::open(ground, "method.rloo", &spec.rewards, &spec.sampling, plan, rule)
}
