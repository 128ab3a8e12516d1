//! The interface of a method on rollouts: how rewards become advantages, and the loss of a packed row. GRPO and RLOO
//! differ in nothing else. Pure.

use super::advantages::{Advantages, RolloutRewards};
use crate::models::loss::Extreme;
use crate::models::{Loss, Metrics};
use crate::nn::head::TargetScores;
use tch::{Kind, Tensor};

/// What the loss is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossUnit {
    /// The tokens of answers.
    Tokens,
    /// Answers.
    Sequences,
}

/// Answers that are left out of the forward pass but still count in the means.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SkippedAnswers {
    /// Number of answers.
    pub sequences: f64,
    /// Number of their tokens.
    pub tokens: f64,
}

/// The inputs of a loss: N tokens of S answers.
pub struct PolicyLossInputs<'a> {
    /// (N) log-probabilities before the first optimiser step.
    pub old: &'a Tensor,
    /// (N) log-probabilities under the reference model.
    pub reference: Option<&'a Tensor>,
    /// (S)
    pub advantages: &'a Tensor,
    /// (N) which answer each token belongs to.
    pub owner: &'a Tensor,
    /// (S) tokens of each answer.
    pub lengths: &'a Tensor,
    /// Items of the whole step divided by its tokens: the weight of one token in a mean over tokens.
    pub per_token: f64,
    /// Answers that are counted here but not run.
    pub skipped: SkippedAnswers,
}

impl PolicyLossInputs<'_> {
    /// Sums over the tokens of each answer: (N) -> (S).
    pub fn sum_per_answer(&self, x: &Tensor) -> Tensor {
        Tensor::zeros([self.lengths.size()[0]], (Kind::Float, x.device())).index_add(0, self.owner, x)
    }

    /// Gives each token the number of its answer: (S) -> (N).
    pub fn repeat_per_token(&self, x: &Tensor) -> Tensor {
        x.index_select(0, self.owner)
    }

    /// Returns the numbers of tokens and of answers, including skipped ones.
    pub fn counts(&self) -> (f64, f64) {
        let tokens = self.owner.size()[0] as f64 + self.skipped.tokens;
        (tokens, self.lengths.size()[0] as f64 + self.skipped.sequences)
    }
}

/// A method that trains on sampled answers: its advantages and its loss.
pub trait PolicyObjective {
    /// Computes advantages from rewards.
    fn advantages(&self, drawn: &RolloutRewards) -> Advantages;
    /// Returns what the loss sums over.
    fn items(&self) -> LossUnit;
    /// Computes the SUM of the loss over the items, with metrics other than the loss itself. Pure.
    fn loss(&self, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss;
}

/// Adds `clip_ratio/…` to the metrics, from marks 0 or 1 per token (N) or per answer (S). `count` is their number,
/// including skipped answers.
pub fn add_clip_metrics(
    metrics: &mut Metrics,
    terms: &PolicyLossInputs,
    is_low: &Tensor,
    is_high: &Tensor,
    count: f64,
) {
    let (low, high) = (is_low.sum(Kind::Float), is_high.sum(Kind::Float));
    metrics.add("clip_ratio/region_mean", &(&low + &high), count);
    metrics.add("clip_ratio/low_mean", &low, count);
    metrics.add("clip_ratio/high_mean", &high, count);
    let whole = is_low.size() == terms.lengths.size() && is_low.size() != terms.owner.size();
    let share = |marks: &Tensor| match whole {
        true => marks.shallow_clone(),
        false => terms.sum_per_answer(marks) / terms.lengths,
    };
    let skipped = Tensor::zeros([i64::from(terms.skipped.sequences > 0.0)], (Kind::Float, is_low.device()));
    metrics.add_extreme("clip_ratio/low_min", &Tensor::cat(&[&share(is_low), &skipped], 0), Extreme::Minimum);
    metrics.add_extreme("clip_ratio/high_max", &Tensor::cat(&[&share(is_high), &skipped], 0), Extreme::Maximum);
}
