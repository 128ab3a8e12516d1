//! What GRPO and RLOO learn from a draw: how rewards become advantages, and what is lost.

use super::Packed;
use crate::methods::Batch;
use crate::models::{Loss, Metrics, Output};
use crate::nn::{Tokens, head::Scores};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// What rewards become.
pub struct Advantages {
    /// One an answer.
    pub values: Vec<f64>,
    /// The share of answers in groups (or batches) without a difference in reward.
    pub flat: f64,
    /// What else there is to log.
    pub more: Vec<(String, f64)>,
}

/// A draw as advantages are made of it. The answers to one prompt stand together.
pub struct Drawn<'a> {
    pub rewards: &'a [f64],
    /// Answers to each prompt.
    pub answers: usize,
    /// Tokens of each answer.
    pub lengths: &'a [f64],
    /// The sum of `old - reference` over each answer's tokens, where the reference is asked.
    pub kl: Option<&'a [f64]>,
}

/// What a loss divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Items {
    Tokens,
    Sequences,
}

/// Answers that are left out of a pass and still count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle {
    pub sequences: f64,
    pub tokens: f64,
}

/// What a loss is made of: N tokens of S answers.
pub struct Terms<'a> {
    /// (N) log-probabilities before the first step.
    pub old: &'a Tensor,
    /// (N) those of the reference.
    pub reference: Option<&'a Tensor>,
    /// (S)
    pub advantages: &'a Tensor,
    /// (N) which answer each token belongs to.
    pub owner: &'a Tensor,
    /// (S) tokens of each answer.
    pub lengths: &'a Tensor,
    /// Items of the whole step over its tokens: what one token's share of a mean over tokens weighs.
    pub per_token: f64,
    pub idle: Idle,
}

impl Terms<'_> {
    /// (N) -> (S): sums over the tokens of each answer.
    pub fn per_answer(&self, x: &Tensor) -> Tensor {
        Tensor::zeros([self.lengths.size()[0]], (Kind::Float, x.device())).index_add(0, self.owner, x)
    }

    /// (S) -> (N): each token gets what its answer has.
    pub fn per_token(&self, x: &Tensor) -> Tensor {
        x.index_select(0, self.owner)
    }

    /// The numbers of tokens and of answers, idle ones too.
    pub fn counts(&self) -> (f64, f64) {
        let tokens = self.owner.size()[0] as f64 + self.idle.tokens;
        (tokens, self.lengths.size()[0] as f64 + self.idle.sequences)
    }
}

/// What a method says of a draw.
pub trait Rule {
    /// What the rewards of a draw become.
    fn advantages(&self, drawn: &Drawn) -> Advantages;
    /// What the loss sums over.
    fn items(&self) -> Items;
    /// The SUM of the loss over the items, with metrics other than itself; pure.
    fn loss(&self, scores: &Scores, terms: &Terms) -> Loss;
}

/// Some answers as one packed row.
pub(super) struct Lesson<R> {
    pub rule: Rc<R>,
    pub packed: Packed,
    pub old: Tensor,
    pub reference: Option<Tensor>,
    pub advantages: Tensor,
    pub temperature: f64,
    pub entropy: bool,
    pub items: f64,
    pub per_token: f64,
    pub idle: Idle,
    /// Nothing of it is learnt: it stands where a step would have no pass.
    pub void: bool,
}

impl<R: Rule> Batch for Lesson<R> {
    fn tokens(&self) -> &Tokens {
        &self.packed.tokens
    }

    fn items(&self) -> f64 {
        self.items
    }

    fn loss(&self, out: &Output) -> Loss {
        let scores = out.scores(&self.packed.at, &self.packed.targets, self.temperature, self.entropy);
        let terms = Terms {
            old: &self.old,
            reference: self.reference.as_ref(),
            advantages: &self.advantages,
            owner: &self.packed.owner,
            lengths: &self.packed.lengths,
            per_token: self.per_token,
            idle: self.idle,
        };
        if self.void {
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
