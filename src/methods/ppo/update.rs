//! The micro-batches of an update: packed answers with the numbers from before the update.

use super::answers::{AnswerTokenStats, IterationAnswers, column};
use super::loss::{PpoLossWeights, RolloutTensors};
use super::value::ValueFunction;
use crate::methods::rollout::answer::SampledAnswer;
use crate::methods::rollout::scoring::PackedSamples;
use crate::models::learning::MicroBatch;
use crate::models::{Loss, Output};
use crate::nn::Tokens;
use tch::Device;

/// What all micro-batches of an update share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoUpdate {
    /// Clip ranges and weights of the loss's parts.
    pub weights: PpoLossWeights,
    /// Temperature of the rollouts, so that the distribution that is trained is the one that was sampled from.
    pub temperature: f64,
    /// Where the value function is computed.
    pub place: ValueFunction,
}

impl PpoUpdate {
    /// Builds the micro-batches of some answers: one pass of the policy, and one more if the value function has its
    /// own adapter.
    pub fn batches(self, answers: &IterationAnswers, which: &[usize], device: Device) -> Vec<Box<dyn MicroBatch>> {
        let samples: Vec<&SampledAnswer> = which.iter().map(|&i| &answers.samples[i]).collect();
        let numbers: Vec<&AnswerTokenStats> = which.iter().map(|&i| &answers.numbers[i]).collect();
        let part = || (PackedSamples::new(&samples, device), self.before(&numbers, device));
        let (row, before) = part();
        let mut batches: Vec<Box<dyn MicroBatch>> = vec![Box::new(PolicyPass { update: self, row, before })];
        if let ValueFunction::Adapter(name) = self.place {
            let (row, before) = part();
            batches.push(Box::new(ValuePass { update: self, row, before, name }));
        }
        batches
    }

    fn before(self, answers: &[&AnswerTokenStats], device: Device) -> RolloutTensors {
        RolloutTensors {
            log_probs: column(answers, device, |n| &n.log_probs),
            advantages: column(answers, device, |n| &n.advantages),
            values: column(answers, device, |n| &n.values),
            returns: column(answers, device, |n| &n.returns),
            reference: self.weights.kl.map(|_| column(answers, device, |n| &n.reference)),
        }
    }
}

struct PolicyPass {
    update: PpoUpdate,
    row: PackedSamples,
    before: RolloutTensors,
}

impl MicroBatch for PolicyPass {
    fn tokens(&self) -> &Tokens {
        &self.row.tokens
    }

    fn items(&self) -> f64 {
        self.row.count()
    }

    fn loss(&self, out: &Output) -> Loss {
        let PpoUpdate { weights, temperature, place } = self.update;
        let scores = out.scores(&self.row.at, &self.row.targets, temperature, true);
        let mut loss = weights.policy(&scores.log_probs, scores.entropy.as_ref(), &self.before);
        if let ValueFunction::Head { .. } = place {
            let value = weights.value(&place.values(out, &self.row.at), &self.before);
            loss.sum = &loss.sum + value.sum;
            loss.metrics.merge(value.metrics);
        }
        loss
    }
}

struct ValuePass {
    update: PpoUpdate,
    row: PackedSamples,
    before: RolloutTensors,
    name: &'static str,
}

impl MicroBatch for ValuePass {
    fn tokens(&self) -> &Tokens {
        &self.row.tokens
    }

    /// Zero, because the policy's pass already counts these tokens.
    fn items(&self) -> f64 {
        0.0
    }

    fn loss(&self, out: &Output) -> Loss {
        self.update.weights.value(&self.update.place.values(out, &self.row.at), &self.before)
    }

    fn adapter(&self) -> Option<&str> {
        Some(self.name)
    }
}
