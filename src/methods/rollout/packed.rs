//! Packs samples into rows and computes log-probabilities of their answers the way training does.

use super::SampledAnswer;
use crate::data::batch;
use crate::error::Result;
use crate::methods::reference::ReferenceModel;
use crate::models::Model;
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// Samples as one packed row. N is the number of tokens of all answers together, S the number of samples.
pub struct PackedSamples {
    pub tokens: Tokens,
    /// (N) rows of the trunk's output that predict an answer's token.
    pub at: Tensor,
    /// (N) the tokens they predict.
    pub targets: Tensor,
    /// (N) index of the sample each token belongs to.
    pub owner: Tensor,
    /// (S) tokens of each answer, float32.
    pub lengths: Tensor,
}

impl PackedSamples {
    pub fn new(samples: &[&SampledAnswer], device: Device) -> Self {
        let ids: Vec<&[u32]> = samples.iter().map(|s| s.ids.as_slice()).collect();
        let (mut at, mut targets, mut owner, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0i64);
        for (i, s) in samples.iter().enumerate() {
            for t in s.answer_start..s.ids.len() {
                at.push(start + t as i64 - 1);
                targets.push(i64::from(s.ids[t]));
                owner.push(i as i64);
            }
            start += s.ids.len() as i64;
        }
        let lengths: Vec<f32> = samples.iter().map(|s| s.length() as f32).collect();
        Self {
            tokens: Tokens::pack(&ids, device),
            at: Tensor::from_slice(&at).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            owner: Tensor::from_slice(&owner).to_device(device),
            lengths: Tensor::from_slice(&lengths).to_device(device),
        }
    }

    /// Joins numbers per answer token (one slice per sample, in their order) to one tensor: (N) float32.
    pub fn column(parts: &[&[f32]], device: Device) -> Tensor {
        Tensor::from_slice(&parts.concat()).to_device(device)
    }

    /// Returns N, the number of tokens of all answers together.
    pub fn count(&self) -> f64 {
        self.at.size()[0] as f64
    }
}

/// Decides which samples share a packed row of at most `budget` tokens. `order` and the result hold indices into
/// `samples`.
pub fn pack_rows(samples: &[SampledAnswer], order: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let lengths: Vec<u32> = samples.iter().map(|s| s.ids.len() as u32).collect();
    let order: Vec<u32> = order.iter().map(|i| *i as u32).collect();
    batch::pack(&lengths, &order, budget)
}

/// Log-probabilities of each answer's tokens, and the entropy of their distributions if it was requested.
pub struct PolicyLogProbs {
    pub log_probs: Vec<Vec<f32>>,
    pub entropy: Option<Vec<Vec<f32>>>,
}

/// Computes log-probabilities of the answers' tokens under the reference of `model`, as `log_probs` does.
pub fn reference_log_probs(
    reference: &ReferenceModel,
    model: &Model,
    samples: &[SampledAnswer],
    temperature: f64,
    budget: usize,
) -> Result<Vec<Vec<f32>>> {
    Ok(reference.with(model, |m| log_probs(m, samples, temperature, budget, false))?.log_probs)
}

/// Computes log-probabilities of every answer's tokens at a temperature the way training does: packed, in chunks,
/// without a KV cache, with the active adapter. Rows hold at most `budget` tokens.
pub fn log_probs(
    model: &Model,
    samples: &[SampledAnswer],
    temperature: f64,
    budget: usize,
    entropy: bool,
) -> Result<PolicyLogProbs> {
    let mut learnt = PolicyLogProbs {
        log_probs: vec![Vec::new(); samples.len()],
        entropy: entropy.then(|| vec![Vec::new(); samples.len()]),
    };
    let order: Vec<usize> = (0..samples.len()).collect();
    for row in pack_rows(samples, &order, budget) {
        let chosen: Vec<&SampledAnswer> = row.iter().map(|i| &samples[*i]).collect();
        let packed = PackedSamples::new(&chosen, model.device());
        let scores =
            model.infer(&packed.tokens, |out| out.scores(&packed.at, &packed.targets, temperature, entropy))?;
        let split = |numbers: &Tensor, into: &mut [Vec<f32>]| -> Result<()> {
            let numbers = Vec::<f32>::try_from(numbers.to_device(Device::Cpu).to_kind(Kind::Float))?;
            let mut from = 0;
            for (i, s) in row.iter().zip(&chosen) {
                into[*i] = numbers[from..from + s.length()].to_vec();
                from += s.length();
            }
            Ok(())
        };
        split(&scores.log_probs, &mut learnt.log_probs)?;
        if let (Some(from), Some(into)) = (&scores.entropy, &mut learnt.entropy) {
            split(from, into)?;
        }
    }
    Ok(learnt)
}
