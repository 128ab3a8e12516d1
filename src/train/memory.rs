//! Predicts the memory and disk space that a run needs, from the shapes of its tensors, before it starts.

use super::optim;
use super::prepare::{Prepared, result_kind};
use crate::adapters::kind::AdapterActivations;
use crate::adapters::lora;
use crate::models::{Dtype, Heads, Model};
use crate::nn::{Param, attention, chunked};
use crate::recipe::{Master, Plan, ReplayChoice};
use serde::Serialize;

/// Predicted needs of a run, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ResourceEstimate {
    /// Frozen weights in the format in which they are held. On the CPU, weights held in the format of their file are
    /// mapped.
    pub weights: u64,
    /// Master weights, gradients and optimiser state of the trained parameters.
    pub training: u64,
    /// Activations that a packed row keeps for its backward pass, and the largest temporary tensors.
    pub activations: u64,
    /// Sum of the three above.
    pub memory: u64,
    /// Checkpoints and the result, with space for the new copy while one replaces another.
    pub disk: u64,
}

/// Predicts the needs of a run under `plan`. `model` is the sketch of its model; a packed row has at most `row` tokens,
/// of which `supervised` are trained on.
pub fn predict(prepared: &Prepared, plan: &Plan, model: &Model, row: u64, supervised: u64) -> ResourceEstimate {
    let (trained, _) = count(plan, model);
    let (c, recipe) = (model.config(), &plan.recipe);
    let kind = model.kind();
    let width = kind.elt_size_in_bytes() as u64;
    let full = recipe.adapter.is_none();
    let base: u64 = model.params().base().map(|p| p.tensor.numel() as u64).sum();
    let (stored, held) = model.storage_summary_as(prepared.storage, prepared.device);
    // For each trained parameter: the master weight, its gradient and the optimiser's state.
    let exact = recipe.optim.master == Master::F32;
    let master = if exact { 4 } else { 2 };
    let state = match full {
        true => optim::state_bytes(&recipe.optim, model.params().base()),
        false => optim::state_bytes(&recipe.optim, model.params().trainable()),
    };
    let training = trained * 2 * master + state;
    let parts = recipe.method.parts(recipe.adapter.as_ref()).unwrap_or_default();
    let other = |(numbers, dtype): &(u64, Option<Dtype>)| {
        numbers * dtype.map_or(width, |d| d.kind().elt_size_in_bytes() as u64)
    };
    let others: u64 = parts.other_models.iter().map(other).sum();
    let weights = held * (u64::from(!full) + u64::from(parts.reference_copy)) + others;

    // A reward model has no output head.
    let vocabulary = if model.heads() == Heads::Score { 0 } else { c.vocab_size };
    let [d, f, v] = [c.hidden_size, c.intermediate_size, vocabulary].map(|n| n as u64);
    let q = (c.num_attention_heads * c.head_dim) as u64;
    let kv = (c.num_key_value_heads * c.head_dim) as u64;
    let AdapterActivations { rank, dropout } =
        recipe.adapter.as_ref().map(|adapter| adapter.activations()).unwrap_or_default();
    // `readers`: linear layers whose input is the result of a norm. `gates`: inputs of the MLP's activation (gate and
    // up if it is gated).
    let (readers, gates) = if c.hidden_act == "silu" { (5, 2) } else { (2, 1) };
    // Numbers that a layer keeps for its backward pass, per token: the inputs of two norms; q, k, v and result of
    // attention, padded; the gathered result; the inputs of the activation; the low-rank activations of the adapters;
    // with dropout, for each adapter the mask and the masked input.
    let layer = 2 * d + 3 * q + 2 * kv + gates * f + 7 * rank + if dropout { 2 * (readers * d + q + f) } else { 0 };
    let depth = c.num_hidden_layers as u64;
    let replayed = match recipe.run.replay {
        ReplayChoice::None => 0,
        ReplayChoice::Layers(n) => depth.min(n as u64),
        ReplayChoice::All => depth,
    };
    // Replayed layers are recomputed one at a time, after the other layers have released their activations.
    let again = if replayed > 0 { layer } else { 0 };
    let kept = row * width * (d * replayed + (layer * (depth - replayed)).max(again));
    let chunk = match parts.tables {
        0 => supervised.min(256) * v * width,
        tables => supervised.min(chunked::CHUNK as u64) * v * 4 * tables,
    };
    // A weight held in a narrower format is widened while it is multiplied. The head is the largest such temporary.
    let widened = if stored != model.kind() && !full { d * v * width } else { 0 };
    let head = chunk + supervised * d * width * 2 + widened;
    let longest = prepared.rows.train().lengths.iter().max().map_or(0, |n| u64::from(*n));
    let scores =
        row * longest * c.num_attention_heads as u64 * attention::score_bytes(longest as i64, kind, prepared.device);
    let backward = (row * (3 * f + 2 * d) * width).max(scores);
    let activations = if full {
        // In full fine-tuning the memory of activations is released while gradients are allocated, so only the excess
        // over the gradients counts. The first gradient is the head's, together with a narrow copy of its weight and
        // one chunk's part of the gradient; the last is the embedding's, in two formats.
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
    ResourceEstimate { weights, training, activations, memory: weights + training + activations, disk }
}

/// Returns (trained, all) numbers of parameters. Under full fine-tuning a sketch has no trainable tensors: all are
/// counted.
pub fn count(plan: &Plan, model: &Model) -> (u64, u64) {
    let numbers = |p: &Param| p.tensor.numel() as u64;
    let all: u64 = model.params().base().map(numbers).sum();
    let trained = if plan.recipe.adapter.is_none() { all } else { model.params().trainable().map(numbers).sum() };
    (trained, all)
}

/// Counts adapted modules by the last part of their name, e.g. `q_proj` -> 30; `(whole)` marks modules trained as a
/// whole.
pub fn count_adapted_modules(model: &Model) -> Vec<(String, usize)> {
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
