//! The answers of an iteration and everything their update needs: log-probabilities under policy and reference, and
//! values, of each token when the iteration began. A checkpoint in the middle of an iteration stores them as tensors.

use crate::error::Result;
use crate::methods::rollout::answer::SampledAnswer;
use crate::methods::rollout::sample_state;
use crate::methods::rollout::scoring::PackedSamples;
use crate::methods::state::{self, StateTensors};
use tch::{Device, Tensor};

/// Numbers of one answer's tokens, one per token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnswerTokenStats {
    /// ln p under the policy that sampled the answer, as training computes it.
    pub log_probs: Vec<f32>,
    /// ln p under the reference.
    pub reference: Vec<f32>,
    /// Value of the state in which the token was chosen.
    pub values: Vec<f32>,
    /// How much better the token was than expected.
    pub advantages: Vec<f32>,
    /// What the value function should have predicted.
    pub returns: Vec<f32>,
}

/// The names of these numbers in a checkpoint.
const NAMES: [&str; 5] = ["log_probs", "reference", "values", "advantages", "returns"];

impl AnswerTokenStats {
    /// Computes ln p - ln r of each token; r is the reference.
    pub fn log_ratios(&self) -> Vec<f64> {
        self.log_probs.iter().zip(&self.reference).map(|(p, r)| f64::from(*p) - f64::from(*r)).collect()
    }

    fn get(&self) -> [&Vec<f32>; 5] {
        [&self.log_probs, &self.reference, &self.values, &self.advantages, &self.returns]
    }

    fn get_mut(&mut self) -> [&mut Vec<f32>; 5] {
        [&mut self.log_probs, &mut self.reference, &mut self.values, &mut self.advantages, &mut self.returns]
    }
}

/// What an iteration trains on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IterationAnswers {
    /// The answers.
    pub samples: Vec<SampledAnswer>,
    /// The numbers of each sample's tokens.
    pub numbers: Vec<AnswerTokenStats>,
    /// Weight of the KL divergence in this iteration.
    pub coefficient: f64,
}

/// Joins one of the numbers of all samples, in their order in the row, to one tensor: (N).
pub fn column(numbers: &[&AnswerTokenStats], device: Device, of: impl Fn(&AnswerTokenStats) -> &[f32]) -> Tensor {
    PackedSamples::column(&numbers.iter().map(|n| of(n)).collect::<Vec<_>>(), device)
}

impl IterationAnswers {
    /// Saves everything in a checkpoint's tensors; `sources` is the number of rewards of each sample.
    pub fn save(&self, into: &mut StateTensors, sources: usize) {
        sample_state::save(into, "answers", &self.samples, sources);
        for (k, name) in NAMES.iter().enumerate() {
            let numbers: Vec<f32> = self.numbers.iter().flat_map(|n| n.get()[k].iter().copied()).collect();
            into.insert(format!("tokens.{name}"), Tensor::from_slice(&numbers));
        }
        into.insert("tokens.coefficient".into(), Tensor::from_slice(&[self.coefficient]));
    }

    /// Loads what `save` saved; `None` if nothing was saved. An error if a tensor does not match the answers' tokens.
    pub fn load(saved: &StateTensors) -> Result<Option<Self>> {
        if !saved.contains_key("tokens.coefficient") {
            return Ok(None);
        }
        let [coefficient] = state::exactly(saved, "tokens.coefficient")?;
        let samples = sample_state::load(saved, "answers")?;
        let mut numbers = vec![AnswerTokenStats::default(); samples.len()];
        let tokens: usize = samples.iter().map(SampledAnswer::length).sum();
        for (k, name) in NAMES.iter().enumerate() {
            let found = state::column(saved, &format!("tokens.{name}"), tokens)?;
            let mut from = 0;
            for (n, s) in numbers.iter_mut().zip(&samples) {
                let to = from + s.length();
                *n.get_mut()[k] = found[from..to].to_vec();
                from = to;
            }
        }
        Ok(Some(Self { samples, numbers, coefficient }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> IterationAnswers {
        let sample = |prompt: usize, tokens: usize| SampledAnswer {
            prompt,
            ids: (0..(prompt + 1 + tokens) as u32).collect(),
            answer_start: prompt + 1,
            log_probs: (0..tokens).map(|t| -0.1 * t as f32).collect(),
            ended: prompt.is_multiple_of(2),
            text: format!("answer {prompt}"),
            rewards: vec![0.5, -2.0],
            reward: -1.5,
        };
        let samples = vec![sample(3, 5), sample(1, 1), sample(4, 2)];
        let numbers = samples.iter().map(|s| {
            let row = |by: f32| (0..s.length()).map(|t| 1e-8 + by * t as f32).collect::<Vec<f32>>();
            AnswerTokenStats {
                log_probs: row(-0.5),
                reference: row(-0.25),
                values: row(0.1),
                advantages: row(1.5),
                returns: row(2.0),
            }
        });
        IterationAnswers { numbers: numbers.collect(), samples, coefficient: 0.1 }
    }

    #[test]
    fn a_saved_iteration_is_loaded_bit_for_bit() {
        let (answers, mut saved) = (answers(), StateTensors::new());
        answers.save(&mut saved, 2);
        assert_eq!(IterationAnswers::load(&saved).unwrap(), Some(answers));
        assert_eq!(IterationAnswers::load(&StateTensors::new()).unwrap(), None);
        saved.remove("tokens.values");
        assert!(IterationAnswers::load(&saved).unwrap_err().to_string().contains("tokens.values"));
    }
}
