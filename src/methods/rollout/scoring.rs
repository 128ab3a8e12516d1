//! Computes log-probabilities of sampled answers the way training does: packed, in chunks, without a KV cache.

use super::answer::SampledAnswer;
use crate::error::Result;
use crate::methods::reference::ReferenceModel;
use crate::methods::targets::TargetTokens;
use crate::models::{Model, Output};
use crate::native::upload_slice;
use crate::nn::Tokens;
use tch::{Device, Kind, Tensor};

/// Samples as one packed row. N is the number of tokens of all answers together, S the number of samples.
pub struct PackedSamples {
    /// The packed row.
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
    /// Packs samples into one row.
    pub fn new(samples: &[&SampledAnswer], device: Device) -> Self {
        let ids: Vec<&[u32]> = samples.iter().map(|s| s.ids.as_slice()).collect();
        let in_answer = |i: usize, t: usize| t >= samples[i].answer_start;
        let (tokens, TargetTokens { at, targets, counts, .. }) = TargetTokens::pack(&ids, in_answer, device);
        let owner: Vec<i64> = (0i64..).zip(&counts).flat_map(|(i, n)| std::iter::repeat_n(i, *n as usize)).collect();
        let lengths: Vec<f32> = counts.iter().map(|n| *n as f32).collect();
        Self { tokens, at, targets, owner: upload_slice(&owner, device), lengths: upload_slice(&lengths, device) }
    }

    /// Joins numbers per answer token (one slice per sample, in their order) to one tensor: (N) float32.
    pub fn column(parts: &[&[f32]], device: Device) -> Tensor {
        upload_slice(&parts.concat(), device)
    }

    /// Returns N, the number of tokens of all answers together.
    pub fn count(&self) -> f64 {
        self.at.size()[0] as f64
    }
}

/// Runs all samples through the model, in packed rows of at most `budget` tokens and without gradient. Returns what
/// `f` computes for the answer tokens of each sample: K numbers per token.
pub fn score_samples<const K: usize>(
    model: &Model,
    samples: &[SampledAnswer],
    budget: usize,
    f: impl Fn(&Output, &PackedSamples) -> [Tensor; K],
) -> Result<Vec<[Vec<f32>; K]>> {
    let mut found: Vec<[Vec<f32>; K]> = samples.iter().map(|_| std::array::from_fn(|_| Vec::new())).collect();
    let lengths: Vec<u32> = samples.iter().map(|s| s.ids.len() as u32).collect();
    let all: Vec<u32> = (0..lengths.len() as u32).collect();
    for row in crate::data::batch::pack(&lengths, &all, budget) {
        let members: Vec<&SampledAnswer> = row.iter().map(|&i| &samples[i]).collect();
        let packed = PackedSamples::new(&members, model.device());
        for (k, numbers) in model.infer(&packed.tokens, |out| f(out, &packed))?.into_iter().enumerate() {
            let numbers = Vec::<f32>::try_from(numbers.to_device(Device::Cpu).to_kind(Kind::Float).contiguous())?;
            let mut from = 0;
            for &i in &row {
                let to = from + samples[i].length();
                found[i][k] = numbers[from..to].to_vec();
                from = to;
            }
        }
    }
    Ok(found)
}

/// Log-probabilities of each answer's tokens, and the entropy of their distributions if it was requested.
pub struct PolicyLogProbs {
    /// One number per token, for each answer.
    pub log_probs: Vec<Vec<f32>>,
    /// The same of entropies, in nats.
    pub entropy: Option<Vec<Vec<f32>>>,
}

/// Computes log-probabilities of every answer's tokens at a temperature, with the active adapter. Rows hold at most
/// `budget` tokens.
pub fn log_probs(
    model: &Model,
    samples: &[SampledAnswer],
    temperature: f64,
    budget: usize,
    entropy: bool,
) -> Result<PolicyLogProbs> {
    if entropy {
        let both = score_samples(model, samples, budget, |out, row| {
            let scores = out.scores(&row.at, &row.targets, temperature, true);
            let entropy = scores.entropy.unwrap_or_else(|| scores.log_probs.zeros_like());
            [scores.log_probs, entropy]
        })?;
        let (log_probs, entropy) = both.into_iter().map(|[log_probs, entropy]| (log_probs, entropy)).unzip();
        return Ok(PolicyLogProbs { log_probs, entropy: Some(entropy) });
    }
    let own = score_samples(model, samples, budget, |out, row| {
        [out.scores(&row.at, &row.targets, temperature, false).log_probs]
    })?;
    Ok(PolicyLogProbs { log_probs: own.into_iter().map(|[log_probs]| log_probs).collect(), entropy: None })
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
