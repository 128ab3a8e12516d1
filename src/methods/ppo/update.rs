//! The micro-batches of an update: packed answers with the numbers from before the update.

use super::answers::{AnswerTokenStats, IterationAnswers, column};
use super::loss::{PpoLossWeights, RolloutTensors};
use crate::methods::MicroBatch;
use crate::methods::rollout::{PackedSamples, SampledAnswer};
use crate::models::{Loss, Output};
use crate::nn::Tokens;
use tch::{Device, Tensor};

/// Where the value function is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFunction {
    /// A head on the policy's hidden states. It is stored in this adapter, or in the base if the base itself is
    /// trained.
    Head { adapter: Option<&'static str>, detach: bool },
    /// An adapter of its own.
    Adapter(&'static str),
}

impl ValueFunction {
    /// Computes the values of the states `at`: (N), from the output of the pass that carries the value function.
    pub fn values(self, out: &Output, at: &Tensor) -> Tensor {
        match self {
            Self::Head { adapter, detach: true } => Self::Head { adapter, detach: false }.values(&out.detached(), at),
            Self::Head { adapter: Some(name), .. } => out.scalar_of_adapter(name, at),
            Self::Head { adapter: None, .. } | Self::Adapter(_) => out.scalar(at),
        }
    }
}

/// What all micro-batches of an update share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoUpdate {
    pub weights: PpoLossWeights,
    /// Temperature of the rollouts, so that the distribution that is trained is the one that was sampled from.
    pub temperature: f64,
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
