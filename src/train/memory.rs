//! Predicts the memory and disk space that a run needs, from the shapes of its tensors, before it starts.

use super::optim;
use super::prepare::Prepared;
use super::prepare::formats::result_kind;
use crate::adapters::kind::AdapterActivations;
use crate::adapters::lora;
use crate::machine;
use crate::methods::parts::ModelParts;
use crate::models::{Dtype, Heads, Model};
use crate::native;
use crate::nn::{AttentionMemory, AttentionRow, Param, QuantisedParam, attention, chunked, quantised};
use crate::recipe::optim::Master;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ReplayChoice;
use serde::Serialize;
use tch::Device;

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
    let recipe = &plan.recipe;
    let parts = recipe.method.parts(recipe.adapter.as_ref()).unwrap_or_default();
    let shape = RunShape { prepared, plan, model, parts, row, supervised };
    let trained = shape.trained_bytes();
    let (weights, training, activations) = (shape.weights(), trained.total(), shape.activations(&trained));
    let memory = weights + training + activations;
    ResourceEstimate { weights, training, activations, memory, disk: shape.disk(&trained) }
}

/// What a prediction depends on.
struct RunShape<'a> {
    prepared: &'a Prepared,
    plan: &'a Plan,
    model: &'a Model,
    parts: ModelParts,
    /// Tokens of a packed row.
    row: u64,
    /// Tokens of the row that are trained on.
    supervised: u64,
}

/// Bytes of the trained parameters.
struct TrainedBytes {
    /// Master weights; gradients take as much.
    masters: u64,
    /// State of the optimiser.
    optimiser: u64,
}

impl TrainedBytes {
    fn total(&self) -> u64 {
        2 * self.masters + self.optimiser
    }
}

impl RunShape<'_> {
    /// Returns true if all weights are trained.
    fn full(&self) -> bool {
        self.plan.recipe.adapter.is_none()
    }

    /// Returns the bytes of a number in the arithmetic's format.
    fn width(&self) -> u64 {
        self.model.kind().elt_size_in_bytes() as u64
    }

    /// Returns hidden size, intermediate size and vocabulary. A reward model has no output head: its vocabulary is 0.
    fn sizes(&self) -> [u64; 3] {
        let c = self.model.config();
        let vocabulary = if self.model.heads() == Heads::Score { 0 } else { c.vocab_size };
        [c.hidden_size, c.intermediate_size, vocabulary].map(|n| n as u64)
    }

    fn trained_bytes(&self) -> TrainedBytes {
        let (optim, params) = (&self.plan.recipe.optim, self.model.params());
        let (trained, _) = count(self.plan, self.model);
        let master = if optim.master == Master::F32 { 4 } else { 2 };
        let optimiser = match self.full() {
            true => optim::state_bytes(optim, params.base()),
            false => optim::state_bytes(optim, params.trainable()),
        };
        TrainedBytes { masters: trained * master, optimiser }
    }

    /// Returns the bytes of the frozen weights and of the method's other models.
    fn weights(&self) -> u64 {
        let (_, held) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let other = |(numbers, dtype): &(u64, Option<Dtype>)| {
            numbers * dtype.map_or(self.width(), |d| d.kind().elt_size_in_bytes() as u64)
        };
        let others: u64 = self.parts.other_models.iter().map(other).sum();
        held * (u64::from(!self.full()) + self.parts.base_copies) + others
    }

    /// Returns the bytes that all layers keep for their backward pass.
    fn kept(&self) -> u64 {
        let (c, recipe) = (self.model.config(), &self.plan.recipe);
        let [d, f, _] = self.sizes();
        let q = (c.num_attention_heads * c.head_dim) as u64;
        let AdapterActivations { rank, dropout } =
            recipe.adapter.as_ref().map(|adapter| adapter.activations()).unwrap_or_default();
        // `readers`: linear layers whose input is the result of a norm. `gates`: inputs of the MLP's activation (gate
        // and up if it is gated).
        let (readers, gates) = if c.hidden_act == "silu" { (5, 2) } else { (2, 1) };
        // Numbers that a layer keeps for its backward pass besides attention's, per token: the inputs of two norms; the
        // inputs of the activation; the low-rank activations of the adapters; with dropout, for each adapter the mask
        // and the masked input.
        let numbers = 2 * d + gates * f + 7 * rank + if dropout { 2 * (readers * d + q + f) } else { 0 };
        let layer = self.row * self.width() * numbers + self.attention().kept;
        let depth = c.num_hidden_layers as u64;
        let replayed = match recipe.run.replay {
            ReplayChoice::None => 0,
            ReplayChoice::Layers(n) => depth.min(n as u64),
            ReplayChoice::All => depth,
        };
        // Replayed layers are recomputed one at a time, after the other layers have released their activations.
        let again = if replayed > 0 { layer } else { 0 };
        self.row * self.width() * d * replayed + (layer * (depth - replayed)).max(again)
    }

    /// Returns the memory of one layer's attention.
    fn attention(&self) -> AttentionMemory {
        let (c, lengths) = (self.model.config(), self.prepared.rows.train().lengths);
        let longest = lengths.iter().max().map_or(0, |n| u64::from(*n));
        let all: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
        let row = AttentionRow {
            tokens: self.row,
            segments: (self.row * lengths.len() as u64).checked_div(all).unwrap_or(0).max(1),
            longest,
            heads: c.num_attention_heads as u64,
            kv_heads: c.num_key_value_heads as u64,
            head_size: c.head_dim as u64,
        };
        attention::memory(row, self.model.kind(), self.prepared.device)
    }

    /// Returns the bytes that a frozen head takes for each logit of a chunk.
    fn logit_bytes(&self) -> u64 {
        match (self.prepared.device, self.width()) {
            // Our own loop turns logits into their gradient in place.
            (Device::Cpu, width) => width,
            // The logits and log-probabilities in float32, and where the head computes in half precision its logits.
            (_, 4) => 8,
            (_, width) => width + 8,
        }
    }

    /// Returns the bytes of the output head's largest temporary tensors.
    fn head(&self) -> u64 {
        let ([d, _, v], width) = (self.sizes(), self.width());
        let chunk = match self.parts.tables {
            0 => self.supervised.min(256) * v * self.logit_bytes(),
            tables => self.supervised.min(chunked::CHUNK as u64) * v * 4 * tables,
        };
        // A weight held in a narrower format is widened while it is multiplied. The head is the largest such temporary.
        let (stored, _) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let widened = if stored != self.model.kind() && !self.full() { d * v * width } else { 0 };
        chunk + self.supervised * d * width * 2 + widened
    }

    /// Returns the bytes of the largest part of a quantised weight that is dequantised at a time.
    fn dequantised(&self) -> u64 {
        let Some(_) = self.prepared.storage.quantisation() else { return 0 };
        let possible = self.model.params().base().filter(|p| !matches!(p.quantised, QuantisedParam::Never));
        let numbers = possible.map(|p| p.count().min(quantised::TILE as u64)).max().unwrap_or(0);
        numbers * self.width()
    }

    fn activations(&self, trained: &TrainedBytes) -> u64 {
        let ([d, f, v], width) = (self.sizes(), self.width());
        let (kept, head) = (self.kept(), self.head());
        if self.full() && self.prepared.device != Device::Cpu {
            // The same as below, in libtorch's operations. The head's weight is cast for each chunk. While a chunk's
            // logits and their gradient are computed, the gradient of the chunks before exists; then the chunk's own is
            // made from the gradient of the logits, and cast.
            let cast = if width == 4 { 0 } else { width };
            let chunk = self.supervised.min(256) * v;
            let logits = d * v * (4 + cast) + chunk * (width + 12);
            let gradient = d * v * (4 + 4 + cast + cast) + chunk * width;
            let head = (logits.max(gradient) + self.supervised * d * width * 2).max(d * v * (4 + cast) + head);
            return (kept + head).saturating_sub(trained.masters).max(d * v * 4);
        }
        if self.full() {
            // In full fine-tuning the memory of activations is released while gradients are allocated, so only the
            // excess over the gradients counts. The first gradient is the head's, together with a narrow copy of its
            // weight and one chunk's part of the gradient; the last is the embedding's, in two formats.
            let (first, last) = (d * v * (4 + 2 * width), d * v * (4 + width));
            return (kept + head + first).saturating_sub(trained.masters).max(last);
        }
        let backward = (self.row * (3 * f + 2 * d) * width).max(self.attention().temporary) + self.dequantised();
        kept + head.max(backward)
    }

    /// Returns the bytes of checkpoints and results.
    fn disk(&self, trained: &TrainedBytes) -> u64 {
        let base: u64 = self.model.params().base().map(Param::count).sum();
        let result = match self.full() {
            true => {
                let kind = result_kind(self.plan, self.model).unwrap_or(self.model.kind());
                base * kind.elt_size_in_bytes() as u64
            }
            false => count(self.plan, self.model).0 * 4,
        };
        (trained.masters + trained.optimiser) * (self.plan.recipe.run.keep as u64 + 2) + 2 * result
    }
}

/// Returns (trained, all) numbers of parameters. Under full fine-tuning a sketch has no trainable tensors: all are
/// counted.
pub fn count(plan: &Plan, model: &Model) -> (u64, u64) {
    let all: u64 = model.params().base().map(Param::count).sum();
    let trained = if plan.recipe.adapter.is_none() { all } else { model.params().trainable().map(Param::count).sum() };
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

/// Returns the free bytes of the device's memory; `None` if the system does not report them.
pub fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(i) => native::cuda_capacity(i).ok().map(|(free, _)| free),
        _ => Some(machine::SystemMemory::read().free).filter(|free| *free > 0),
    }
}
