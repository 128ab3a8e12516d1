//! What a run will need, counted before it begins.

use super::optim;
use super::prepare::{Prepared, result_kind};
use crate::adapters::{AdapterSpec, lora};
use crate::models::{Dtype, Heads, Model};
use crate::nn::{Param, attention, chunked};
use crate::recipe::{Master, Plan, ReplayChoice};
use serde::Serialize;

/// Predicted bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Needs {
    /// Frozen weights, as they are held; on the CPU they are mapped from the file where they are held in its format.
    pub weights: u64,
    /// Masters, gradients and optimiser state of what is trained.
    pub training: u64,
    /// What a packed row leaves for its backward, and the largest temporaries.
    pub activations: u64,
    /// All of it.
    pub memory: u64,
    /// Checkpoints, the result and room to swap one in.
    pub disk: u64,
}

/// Counts for a run under `plan` from the sketch of its model, and packed rows of at most `row` tokens of which `supervised`
/// are learnt.
pub fn predict(prepared: &Prepared, plan: &Plan, model: &Model, row: u64, supervised: u64) -> Needs {
    let (trained, _) = count(plan, model);
    let (c, recipe) = (model.config(), &plan.recipe);
    let kind = model.kind();
    let width = kind.elt_size_in_bytes() as u64;
    let full = recipe.adapter.is_none();
    let base: u64 = model.params().base().map(|p| p.tensor.numel() as u64).sum();
    let (stored, held) = model.held_as(prepared.storage, prepared.device);
    // A master, its gradient and the optimiser's state.
    let exact = recipe.optim.master == Master::F32;
    let master = if exact { 4 } else { 2 };
    let state = match full {
        true => optim::bytes(&recipe.optim, model.params().base()),
        false => optim::bytes(&recipe.optim, model.params().trainable()),
    };
    let training = trained * 2 * master + state;
    let parts = recipe.method.parts(recipe.adapter.as_ref()).unwrap_or_default();
    let other = |(numbers, dtype): &(u64, Option<Dtype>)| {
        numbers * dtype.map_or(width, |d| d.kind().elt_size_in_bytes() as u64)
    };
    let others: u64 = parts.others.iter().map(other).sum();
    let weights = held * (u64::from(!full) + u64::from(parts.copy)) + others;

    // A reward model has no output head.
    let vocabulary = if model.heads() == Heads::Score { 0 } else { c.vocab_size };
    let [d, f, v] = [c.hidden_size, c.intermediate_size, vocabulary].map(|n| n as u64);
    let q = (c.num_attention_heads * c.head_dim) as u64;
    let kv = (c.num_key_value_heads * c.head_dim) as u64;
    let (rank, dropout) =
        recipe.adapter.as_ref().map_or((0, false), |AdapterSpec::Lora(l)| (l.rank as u64, l.dropout > 0.0));
    // Layers that read a norm's result, and what the activation reads: gate and up, where it is gated.
    let (readers, gates) = if c.hidden_act == "silu" { (5, 2) } else { (2, 1) };
    // Kept for the backward of a layer, in numbers a token: two norms' inputs, attention's padded q, k, v and result,
    // the gathered result, what the activation reads, and the adapters' low-rank activations;
    // with dropout a mask for every adapter, and what it lets through.
    let layer = 2 * d + 3 * q + 2 * kv + gates * f + 7 * rank + if dropout { 2 * (readers * d + q + f) } else { 0 };
    let depth = c.num_hidden_layers as u64;
    let replayed = match recipe.run.replay {
        ReplayChoice::None => 0,
        ReplayChoice::Layers(n) => depth.min(n as u64),
        ReplayChoice::All => depth,
    };
    // Replayed layers come one by one when the others are gone.
    let again = if replayed > 0 { layer } else { 0 };
    let kept = row * width * (d * replayed + (layer * (depth - replayed)).max(again));
    let chunk = match parts.tables {
        0 => supervised.min(256) * v * width,
        tables => supervised.min(chunked::CHUNK as u64) * v * 4 * tables,
    };
    // A weight that is held narrower than the arithmetic is widened for as long as it multiplies; the head is the largest.
    let widened = if stored != model.kind() && !full { d * v * width } else { 0 };
    let head = chunk + supervised * d * width * 2 + widened;
    let longest = prepared.rows.train().lengths.iter().max().map_or(0, |n| u64::from(*n));
    let scores =
        row * longest * c.num_attention_heads as u64 * attention::score_bytes(longest as i64, kind, prepared.device);
    let backward = (row * (3 * f + 2 * d) * width).max(scores);
    let activations = if full {
        // Gradients come as activations go: first the head's, beside a narrow copy of its weight and a chunk's part of the
        // gradient; last the embedding's, in two formats.
        let (first, last) = (d * v * (4 + 2 * width), d * v * (4 + width));
        (kept + head + first).saturating_sub(trained * master).max(last)
    } else {
        kept + head.max(backward)
    };
    let result = match full {
        true => base * result_kind(plan, model).unwrap_or(model.kind()).elt_size_in_bytes() as u64,
        false => trained * 4,
    };
    let disk = (trained * master + state) * (recipe.run.keep as u64 + 2) + 2 * result;
    Needs { weights, training, activations, memory: weights + training + activations, disk }
}

/// Trained and all parameters of a plan's model, without making masters of a whole base.
pub fn count(plan: &Plan, model: &Model) -> (u64, u64) {
    let numbers = |p: &Param| p.tensor.numel() as u64;
    let all: u64 = model.params().base().map(numbers).sum();
    let trained = if plan.recipe.adapter.is_none() { all } else { model.params().trainable().map(numbers).sum() };
    (trained, all)
}

/// Adapted modules by the last part of their name, e.g. `q_proj` -> 30.
pub fn adapted(model: &Model) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for p in model.params().trainable().filter(|p| p.adapter.is_some() && !lora::second_factor(&p.name)) {
        let low_rank = lora::adapted_module(&p.name);
        let module = low_rank.unwrap_or(p.name.trim_end_matches(".weight"));
        let last = module.rsplit('.').next().unwrap_or(module);
        let shown = if low_rank.is_some() { last.to_string() } else { format!("{last} (whole)") };
        match counts.iter_mut().find(|(n, _)| *n == shown) {
            Some((_, n)) => *n += 1,
            None => counts.push((shown, 1)),
        }
    }
    counts
}
