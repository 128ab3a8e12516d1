//! Measures the distance between the outputs of two models on fixed prompts.
//!
//! The prompts never change, so two measurements of the same model are comparable.

use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::models::{Heads, Model, reward};
use crate::nn::Tokens;
use serde::Serialize;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Short texts of several kinds, used if the folder has a tokenizer.
const PROMPT_TEXTS: [&str; 4] = [
    "The capital of France is Paris, and the capital of Italy is",
    "Type 2 diabetes mellitus with diabetic chronic kidney disease",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "1, 2, 3, 5, 8, 13, 21, 34, 55",
];
/// Lengths of the pseudo-random token sequences, which need no tokenizer.
const PROMPT_LENGTHS: [usize; 3] = [5, 17, 48];

/// Returns the fixed prompts as token ids: sequences spread over the whole vocabulary and, if `folder` has a tokenizer,
/// short texts. Prompts are truncated to the model's context.
pub fn prompts(model: &Model, folder: &Path) -> Result<Vec<Vec<u32>>> {
    Ok(prompts_with_texts(model, folder)?.into_iter().map(|(_, ids)| ids).collect())
}

/// Returns the prompts of [`prompts`] with the text of each: `None` for a sequence without text or a truncated text.
pub fn prompts_with_texts(model: &Model, folder: &Path) -> Result<Vec<(Option<String>, Vec<u32>)>> {
    let config = model.config();
    let limit = model.longest_sequence().unwrap_or(i64::MAX);
    let vocabulary = config.vocab_size as u64;
    // A linear congruential generator (Knuth's MMIX constants), so that the prompts depend on no library's random
    // numbers.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocabulary) as u32
    };
    let mut prompts: Vec<(Option<String>, Vec<u32>)> =
        PROMPT_LENGTHS.iter().map(|n| (None, (0..*n).map(|_| next()).collect())).collect();
    if ChatTokenizer::in_directory(folder) {
        let tokenizer = ChatTokenizer::load(folder, None)?;
        for text in PROMPT_TEXTS {
            let ids = tokenizer.encode_plain(text)?;
            if let Some(id) = ids.iter().find(|id| **id as u64 >= vocabulary) {
                return Err(Error::user(format!(
                    "{}: the tokenizer gives token {id}; the model has {vocabulary} tokens",
                    folder.display()
                ))
                .hint("tokenizer and weights seem to be of two different models"));
            }
            prompts.push((Some(text.to_string()), ids));
        }
    }
    for (text, ids) in &mut prompts {
        text.take_if(|_| ids.len() as i64 > limit);
        ids.truncate(limit.max(1) as usize);
    }
    prompts.retain(|(_, ids)| !ids.is_empty());
    Ok(prompts)
}

/// Returns the model's output after every token of every prompt, float32 on the CPU: logits (N, V), or scores (N, 1) of
/// a reward model.
pub fn logits(model: &Model, prompts: &[Vec<u32>]) -> Result<Tensor> {
    if model.heads() == Heads::Score {
        return Ok(reward::scores_at_tokens(model, prompts)?.unsqueeze(-1));
    }
    let tokens = Tokens::pack(prompts, model.device());
    let rows = Tensor::arange(tokens.len() as i64, (Kind::Int64, model.device()));
    // On a GPU, logits of all rows could take more memory than a step of training.
    let at_a_time = if model.device().is_cuda() { DEVICE_ROWS } else { rows.size()[0].max(1) };
    model.infer(&tokens, |out| {
        let parts = rows.split(at_a_time, 0);
        let parts: Vec<Tensor> = parts.iter().map(|rows| out.logits(rows).to_device(Device::Cpu)).collect();
        Tensor::cat(&parts, 0)
    })
}

/// Rows whose logits exist on a GPU at a time.
pub(super) const DEVICE_ROWS: i64 = 32;

/// The distance of a model's logits from those of a reference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LogitDistance {
    /// Largest absolute difference of a logit.
    pub max_abs: f64,
    pub mean_abs: f64,
    /// `max_abs` over the reference's largest absolute logit.
    pub relative: f64,
    /// Mean over positions of KL(reference || other), in nats.
    pub mean_kl: f64,
    /// Share of positions where both models have the same most likely token.
    pub top1_agreement: f64,
}

impl LogitDistance {
    /// Compares two tables of logits (N, V). A NaN in either gives NaN here, which passes no threshold. Runs over a few
    /// rows at a time, because both tables in float64 would need much memory.
    pub fn between(reference: &Tensor, other: &Tensor) -> Self {
        const ROWS: i64 = 16;
        let (n, vocabulary) = (reference.size()[0], reference.size()[1]);
        let (mut max_abs, mut largest, mut sum, mut kl, mut agree) = (0.0f64, 0.0f64, 0.0, 0.0, 0.0);
        let top = |so_far: f64, t: Tensor| match t.max().double_value(&[]) {
            new if new.is_nan() || so_far.is_nan() => f64::NAN,
            new => so_far.max(new),
        };
        for start in (0..n).step_by(ROWS as usize) {
            let part = |t: &Tensor| t.narrow(0, start, ROWS.min(n - start));
            let (p, q) = (part(reference), part(other));
            let difference = (&q - &p).abs();
            max_abs = top(max_abs, difference.shallow_clone());
            largest = top(largest, p.abs());
            sum += difference.sum(Kind::Double).double_value(&[]);
            let (log_p, log_q) = (p.log_softmax(-1, Kind::Double), q.log_softmax(-1, Kind::Double));
            kl += (log_p.exp() * (log_p - log_q)).sum(Kind::Double).double_value(&[]);
            agree += p.argmax(-1, false).eq_tensor(&q.argmax(-1, false)).sum(Kind::Double).double_value(&[]);
        }
        Self {
            max_abs,
            mean_abs: sum / (n * vocabulary) as f64,
            // If all outputs are zero (a scalar head that was not trained yet), this avoids 0 / 0.
            relative: if max_abs == 0.0 { 0.0 } else { max_abs / largest },
            mean_kl: kl / n as f64,
            top1_agreement: agree / n as f64,
        }
    }
}
