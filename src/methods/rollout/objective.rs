//! What distinguishes GRPO and RLOO: how rewards become advantages, and the loss of a packed row.

use super::PackedSamples;
use crate::methods::MicroBatch;
use crate::models::{Loss, Metrics, Output};
use crate::nn::{Tokens, head::TargetScores};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Advantages of sampled answers.
pub struct Advantages {
    /// One number per answer.
    pub values: Vec<f64>,
    /// The share of answers whose group (or batch) has equal rewards throughout.
    pub uniform_share: f64,
    /// Further metrics to log.
    pub more: Vec<(String, f64)>,
}

/// The numbers that advantages are computed from. The answers to one prompt are consecutive.
pub struct RolloutRewards<'a> {
    pub rewards: &'a [f64],
    /// Number of answers to each prompt.
    pub answers_per_prompt: usize,
    /// Number of tokens of each answer.
    pub lengths: &'a [f64],
    /// The sum of `old - reference` over each answer's tokens, if a reference model is used.
    pub kl: Option<&'a [f64]>,
}

/// What the loss is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossUnit {
    Tokens,
    Sequences,
}

/// Answers that are left out of the forward pass but still count in the means.
#[derive(Debug, Clone, Copy, Default)]
pub struct SkippedAnswers {
    pub sequences: f64,
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
    pub idle: SkippedAnswers,
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
        let tokens = self.owner.size()[0] as f64 + self.idle.tokens;
        (tokens, self.lengths.size()[0] as f64 + self.idle.sequences)
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

/// Answers as one packed row, with everything its loss needs.
pub(super) struct PolicyBatch<R> {
    pub rule: Rc<R>,
    pub packed: PackedSamples,
    pub old: Tensor,
    pub reference: Option<Tensor>,
    pub advantages: Tensor,
    pub temperature: f64,
    pub entropy: bool,
    pub items: f64,
    pub per_token: f64,
    pub idle: SkippedAnswers,
    /// True for a placeholder whose loss is zero: a step without any answer to train on still needs a forward pass.
    pub no_trainable_answer: bool,
}

impl<R: PolicyObjective> MicroBatch for PolicyBatch<R> {
    fn tokens(&self) -> &Tokens {
        &self.packed.tokens
    }

    fn items(&self) -> f64 {
        self.items
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = out.scores(&self.packed.at, &self.packed.targets, self.temperature, self.entropy);
        let terms = PolicyLossInputs {
            old: &self.old,
            reference: self.reference.as_ref(),
            advantages: &self.advantages,
            owner: &self.packed.owner,
            lengths: &self.packed.lengths,
            per_token: self.per_token,
            idle: self.idle,
        };
        if self.no_trainable_answer {
            let sum = scores.log_probs.sum(Kind::Float) * 0.0;
            let mut metrics = Metrics::default();
            metrics.add("loss", &sum, self.items);
            return Loss { sum, metrics };
        }
        let mut loss = self.rule.loss(&scores, &terms);
        loss.metrics.add("loss", &loss.sum, self.items);
        loss
    }
}
