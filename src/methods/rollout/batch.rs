//! Answers as one packed row, with everything its loss needs.

use super::answer::AnswerWithAdvantage;
use super::objective::{PolicyLossInputs, PolicyObjective, SkippedAnswers};
use super::scoring::PackedSamples;
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Metrics, Output};
use crate::nn::Tokens;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// What the loss of a packed row depends on besides its answers.
#[derive(Debug, Clone, Copy)]
pub struct RowContext {
    /// The temperature that the answers were sampled at.
    pub temperature: f64,
    /// True if the loss needs the entropy with its gradient.
    pub entropy: bool,
    /// Items that the row counts.
    pub items: f64,
    /// Items of the whole step divided by its tokens.
    pub per_token: f64,
    /// Answers that this row counts although they are not run.
    pub skipped: SkippedAnswers,
    /// True for a placeholder whose loss is zero: a step without any answer to train on still needs a forward pass.
    pub placeholder: bool,
}

/// Answers as one packed row, with everything its loss needs.
pub struct PolicyBatch<R> {
    rule: Rc<R>,
    packed: PackedSamples,
    /// (N)
    old: Tensor,
    /// (N)
    reference: Option<Tensor>,
    /// (S)
    advantages: Tensor,
    row: RowContext,
}

impl<R: PolicyObjective> PolicyBatch<R> {
    /// Packs answers into one row on `device`. If the first answer has reference log-probabilities, all must have them.
    pub fn upload(answers: &[&AnswerWithAdvantage], row: RowContext, rule: Rc<R>, device: Device) -> Self {
        let column = |parts: &[&[f32]]| PackedSamples::column(parts, device);
        let advantages: Vec<f32> = answers.iter().map(|a| a.advantage as f32).collect();
        let reference: Option<Vec<&[f32]>> = answers.iter().map(|a| a.reference.as_deref()).collect();
        Self {
            packed: PackedSamples::new(&answers.iter().map(|a| &a.sample).collect::<Vec<_>>(), device),
            old: column(&answers.iter().map(|a| a.old.as_slice()).collect::<Vec<_>>()),
            reference: reference.map(|parts| column(&parts)),
            advantages: column(&[&advantages]),
            rule,
            row,
        }
    }
}

impl<R: PolicyObjective> MicroBatch for PolicyBatch<R> {
    fn tokens(&self) -> &Tokens {
        &self.packed.tokens
    }

    fn items(&self) -> f64 {
        self.row.items
    }

    fn loss(&self, out: &Output) -> Loss {
        let RowContext { temperature, entropy, items, per_token, skipped, placeholder } = self.row;
        let scores = out.scores(&self.packed.at, &self.packed.targets, temperature, entropy);
        if placeholder {
            return placeholder_loss(&scores.log_probs, items);
        }
        let terms = PolicyLossInputs {
            old: &self.old,
            reference: self.reference.as_ref(),
            advantages: &self.advantages,
            owner: &self.packed.owner,
            lengths: &self.packed.lengths,
            per_token,
            skipped,
        };
        let mut loss = self.rule.loss(&scores, &terms);
        loss.metrics.add("loss", &loss.sum, items);
        loss
    }
}

/// Returns a loss of zero with a gradient of zero. A product with 0 would not do: a log-probability may be -inf, and
/// 0 * -inf is NaN.
fn placeholder_loss(log_probs: &Tensor, items: f64) -> Loss {
    let sum = log_probs.zeros_like().where_self(&log_probs.isfinite().logical_not(), log_probs).sum(Kind::Float) * 0.0;
    let mut metrics = Metrics::default();
    metrics.add("loss", &sum, items);
    Loss { sum, metrics }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placeholder_is_zero_even_if_a_token_is_impossible() {
        let leaf = Tensor::from_slice(&[-1.0f32, f32::NEG_INFINITY, -0.5]).set_requires_grad(true);
        let loss = placeholder_loss(&leaf, 3.0);
        loss.sum.backward();
        assert_eq!(loss.sum.double_value(&[]), 0.0);
        assert_eq!(Vec::<f32>::try_from(leaf.grad()).unwrap(), [0.0; 3]);
        assert_eq!(loss.metrics.means()["loss"], 0.0);
    }
}
