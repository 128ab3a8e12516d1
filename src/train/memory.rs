//! Predicts the memory and disk space that a run needs, from the shapes of its tensors, before it starts.

use super::optim;
use super::prepare::Prepared;
use super::prepare::formats::result_kind;
use crate::adapters::AdapterSpec;
use crate::adapters::HEAD;
use crate::adapters::kind::AdapterActivations;
use crate::machine;
use crate::methods::parts::ModelParts;
use crate::models::{Dtype, Heads, Model, expert_number, layer_number};
use crate::native;
use crate::nn::{AttentionMemory, AttentionRow, Cell, LayerKind, Param, QuantisedParam, attention, chunked, quantised};
use crate::recipe::optim::Master;
use crate::recipe::plan::Plan;
use crate::recipe::sections::ReplayChoice;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Master weights.
    masters: u64,
    /// Gradients. Fewer than master weights if layers are trained in turn.
    gradients: u64,
    /// State of the optimiser.
    optimiser: u64,
}

impl TrainedBytes {
    fn total(&self) -> u64 {
        self.masters + self.gradients + self.optimiser
    }
}

/// What the adapters of all modules take.
#[derive(Default)]
struct MemoryOfModules {
    /// Numbers per token that are kept for the backward: by those of attention, and by those of the MLP.
    kept: [u64; 2],
    /// Float32 numbers that one of them computes for a moment, at most.
    temporary: u64,
}

impl RunShape<'_> {
    /// Returns true if weights of the base are trained, all or a part.
    fn full(&self) -> bool {
        self.plan.recipe.adapter.is_none()
    }

    /// Returns true if layers are trained in turn: all weights are then master weights.
    fn in_turn(&self) -> bool {
        self.full() && self.plan.recipe.model.trained.layer_sampling().is_some()
    }

    /// Returns true if the weight of the output head is trained.
    fn trains_head(&self) -> bool {
        self.full() && trained_of_base(self.plan, self.model).iter().any(|p| self.is_head(p))
    }

    /// Returns the number of layers that the backward pass does not reach: those below all trained weights.
    fn layers_below(&self) -> u64 {
        if !self.full() {
            return 0;
        }
        let trained = trained_of_base(self.plan, self.model);
        let below_all = trained.iter().any(|p| matches!(p.layer, LayerKind::Embedding | LayerKind::Positions));
        let first = trained.iter().filter_map(|p| layer_number(&p.name)).min().unwrap_or(self.model.depth());
        if below_all { 0 } else { first as u64 }
    }

    /// Returns the bytes of a number in the arithmetic's format.
    fn width(&self) -> u64 {
        self.model.kind().elt_size_in_bytes() as u64
    }

    /// Returns hidden size, the mean width inside the MLPs of a layer, and vocabulary. A reward model has no output head: its
    /// vocabulary is 0.
    fn sizes(&self) -> [u64; 3] {
        let c = self.model.config();
        let vocabulary = if self.model.heads() == Heads::Score { 0 } else { c.vocab_size };
        let widths: u64 = (0..self.model.depth()).map(|i| c.feed_forward(i).1 as u64).sum();
        [c.hidden_size as u64, widths.div_ceil(c.num_hidden_layers as u64), vocabulary as u64]
    }

    /// Returns the mean number of MLPs of a layer that compute a token: more than 1 with experts.
    fn mlps(&self) -> u64 {
        let c = self.model.config();
        let count: u64 = (0..self.model.depth()).map(|i| c.feed_forward(i).0 as u64).sum();
        count.div_ceil(c.num_hidden_layers as u64)
    }

    /// Returns the bytes that the routing of a token keeps: its logits, its weights, and where it is computed.
    fn routing(&self) -> u64 {
        self.model.config().experts.as_ref().map_or(0, |e| (4 * e.count + (4 + 4 * 8) * e.chosen) as u64)
    }

    /// Returns the numbers of the results of a token's experts that are kept: with a bias they are multiplied by their weights
    /// behind it.
    fn results_of_experts(&self) -> u64 {
        let mut params = self.model.params().base();
        let biased = params.any(|p| expert_number(&p.name).is_some() && p.name.ends_with(".bias"));
        let config = self.model.config();
        config.experts.as_ref().filter(|_| biased).map_or(0, |e| (e.chosen * config.hidden_size) as u64)
    }

    fn trained_bytes(&self) -> TrainedBytes {
        let (optim, params) = (&self.plan.recipe.optim, self.model.params());
        let (trained, _) = count(self.plan, self.model);
        let master = if optim.master == Master::F32 { 4 } else { 2 };
        let optimiser = match self.full() {
            true => optim::state_bytes(optim, trained_of_base(self.plan, self.model).into_iter()),
            false => optim::state_bytes(optim, params.trainable()),
        };
        let masters = match self.in_turn() {
            true => params.base().map(Param::count).sum(),
            false => trained,
        };
        TrainedBytes { masters: masters * master, gradients: trained * master, optimiser }
    }

    /// Returns the bytes of the frozen weights and of the method's other models.
    fn weights(&self) -> u64 {
        let (_, held) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let other = |(numbers, dtype): &(u64, Option<Dtype>)| {
            numbers * dtype.map_or(self.width(), |d| d.kind().elt_size_in_bytes() as u64)
        };
        let others: u64 = self.parts.other_models.iter().map(other).sum();
        let all = self.model.params().base().map(Param::count).sum::<u64>().max(1);
        let frozen = match self.full() {
            true if self.in_turn() => 0,
            true => held - held * count(self.plan, self.model).0 / all,
            false => held,
        };
        frozen + held * self.parts.base_copies + others
    }

    /// Returns the numbers that a layer keeps for its backward pass, per token, besides attention's: of attention with its
    /// norms, and of the MLP.
    fn kept_numbers(&self) -> [u64; 2] {
        let c = self.model.config();
        let [d, f, _] = self.sizes();
        let q = (c.num_attention_heads * c.head_dim) as u64;
        let activations = self.adapter();
        let AdapterActivations { rank, dropout, scaled_outputs, .. } = activations;
        // `readers`: linear layers whose input is the result of a norm. `gates`: inputs of the MLP's activation (gate
        // and up if it is gated).
        let (readers, gates) = if self.model.has_gates() { (5, 2) } else { (2, 1) };
        // The inputs of two norms; the inputs of the activation; the low-rank activations of the adapters; with dropout, for each
        // adapter the mask and the masked input; the outputs of linear layers that an adapter scales; what adapters of single
        // modules keep.
        let mlps = self.mlps();
        let dropped = if dropout { [2 * ((readers - gates) * d + q), 2 * (mlps * gates * d + f)] } else { [0; 2] };
        let kv = 2 * (c.num_key_value_heads * c.head_dim) as u64;
        let scaled = if scaled_outputs { [q + kv + d, gates * f + mlps * d] } else { [0; 2] };
        let of_modules = self.module_memory().kept.map(|kept| kept.div_ceil(c.num_hidden_layers as u64));
        let (plain, low_rank) = ([2 * d, gates * f + self.results_of_experts()], [4 * rank, 3 * mlps * rank]);
        std::array::from_fn(|i| plain[i] + low_rank[i] + dropped[i] + scaled[i] + of_modules[i])
    }

    /// Returns the rows of which a layer computes its MLP at a time, if they are not all.
    fn mlp_tile(&self) -> Option<u64> {
        self.plan.recipe.run.mlp_tile.map(|tile| tile as u64).filter(|tile| *tile < self.layer_rows())
    }

    /// Returns the bytes that all layers keep for their backward pass.
    fn kept(&self) -> u64 {
        let ([d, ..], rows, recipe) = (self.sizes(), self.layer_rows(), &self.plan.recipe);
        let depth = self.model.config().num_hidden_layers as u64;
        let layer = match self.model.recurrence() {
            Some(cell) => self.recurrent_layer(cell),
            None => {
                let [of_attention, of_mlp] = self.kept_numbers();
                let numbers = of_attention + if self.mlp_tile().is_some() { 0 } else { of_mlp };
                rows * (self.width() * numbers + self.routing()) + self.attention().kept
            }
        };
        let replayed = match recipe.run.replay {
            ReplayChoice::None => 0,
            ReplayChoice::Layers(n) => depth.min(n as u64),
            ReplayChoice::All => depth,
        };
        let keeping = depth - replayed.max(self.layers_below());
        // Replayed layers are recomputed one at a time, after the other layers have released their activations.
        let again = if replayed > 0 { layer } else { 0 };
        rows * self.width() * d * replayed + (layer * keeping).max(again)
    }

    /// Returns the bytes that a recurrent layer keeps for its backward pass: its input, with what adapters keep of it, and in
    /// float32 states and gates; and the matrix of an adapted layer of states.
    fn recurrent_layer(&self, cell: Cell) -> u64 {
        let ([d, ..], AdapterActivations { rank, dropout, .. }) = (self.sizes(), self.adapter());
        let of_modules = self.module_memory().kept.iter().sum::<u64>().div_ceil(self.model.depth() as u64);
        let input = d + rank + if dropout { 2 * d } else { 0 } + of_modules;
        let loop_numbers = (cell.states() + cell.kept()) as u64 * d;
        let matrix = if self.full() { 0 } else { cell.gates() as u64 * d * d * 4 };
        self.layer_rows() * (self.width() * input + 4 * loop_numbers) + matrix
    }

    /// Returns the bytes of the largest temporary tensors of a layer's backward.
    fn backward_of_layer(&self) -> u64 {
        let ([d, f, _], width) = (self.sizes(), self.width());
        if let Some(cell) = self.model.recurrence() {
            // In float32: the gradients of the gates from both linear layers, in two orders; of the states; states before.
            return self.layer_rows() * (3 * cell.gates() + 2 * cell.states() + 1) as u64 * d * 4;
        }
        // Rows in the order of experts: the layer's inputs or gradients, and both forms of its results.
        let sorted = if self.model.config().experts.is_some() { 3 * self.mlps() * d } else { 0 };
        let inner = 3 * f + 2 * d + sorted;
        let of_mlp = match self.mlp_tile() {
            None => self.layer_rows() * inner * width,
            // The layer's result, the gradients of the MLP's result and of its input, and one tile.
            Some(tile) => (self.layer_rows() * 3 * d + tile * (inner + self.kept_numbers()[1])) * width,
        };
        of_mlp.max(self.attention_backward())
    }

    /// Returns what the adapter adds to the activations of a layer.
    fn adapter(&self) -> AdapterActivations {
        self.plan.recipe.adapter.as_ref().map(|adapter| adapter.activations()).unwrap_or_default()
    }

    /// Returns the number of segments of a packed row.
    fn segments(&self) -> u64 {
        let lengths = self.prepared.rows.train().lengths;
        let all: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
        (self.row * lengths.len() as u64).checked_div(all).unwrap_or(0).max(1)
    }

    /// Returns the rows that layers compute: the tokens of a packed row, and the virtual tokens before its segments.
    fn layer_rows(&self) -> u64 {
        self.row + self.segments() * self.adapter().virtual_rows
    }

    /// Returns what the adapters of all modules keep per token, and the most that one of them computes for a moment.
    fn module_memory(&self) -> MemoryOfModules {
        let Some(spec) = &self.plan.recipe.adapter else { return MemoryOfModules::default() };
        let params = self.model.params();
        let adapted: BTreeSet<&str> = params.adapter(0).filter_map(|p| spec.module_of(&p.name)).collect();
        // Modules of one parent read the same input, but for those that end an attention or an MLP.
        let ends = |last: &str| ["o_proj", "down_proj", "c_proj", "w2", "dense", "dense_4h_to_h"].contains(&last);
        let of_mlp =
            |module: &str| usize::from([".mlp.", ".block_sparse_moe."].iter().any(|part| module.contains(part)));
        let mut inputs: BTreeMap<(&str, bool), u64> = BTreeMap::new();
        let mut sum = MemoryOfModules::default();
        if adapted.contains(HEAD) {
            // It computes the rows of a chunk only, and keeps nothing of them.
            let [d, _, v] = self.sizes();
            sum.temporary = spec.module_memory(HEAD, [v, d]).temporary;
        }
        // An expert computes some of the tokens.
        let of_token = |module: &str, n: u64| match &self.model.config().experts {
            Some(experts) if expert_number(module).is_some() => n * experts.chosen as u64 / experts.count as u64,
            _ => n,
        };
        for p in params.base().filter(|p| p.layer == LayerKind::Linear) {
            let Some(module) = p.name.strip_suffix(".weight").filter(|m| adapted.contains(m)) else { continue };
            let Ok(shape) = <[i64; 2]>::try_from(p.shape()).map(|shape| shape.map(|n| n as u64)) else {
                continue;
            };
            let shape = if p.transposed { [shape[1], shape[0]] } else { shape };
            let m = spec.module_memory(module, shape);
            sum.kept[of_mlp(module)] += of_token(module, m.kept);
            sum.temporary = sum.temporary.max(m.temporary);
            if m.input {
                let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
                inputs.insert((parent, ends(last)), of_token(module, shape[1]));
            }
        }
        for ((parent, _), numbers) in inputs {
            sum.kept[of_mlp(&format!("{parent}."))] += numbers;
        }
        sum
    }

    /// Returns the memory of one layer's attention.
    fn attention(&self) -> AttentionMemory {
        let (c, lengths) = (self.model.config(), self.prepared.rows.train().lengths);
        let (segments, virtual_tokens) = (self.segments(), self.adapter().virtual_tokens);
        let row = AttentionRow {
            tokens: self.row + segments * virtual_tokens,
            segments,
            longest: lengths.iter().max().map_or(0, |n| u64::from(*n)) + virtual_tokens,
            heads: c.num_attention_heads as u64,
            kv_heads: c.num_key_value_heads as u64,
            head_size: c.head_dim as u64,
        };
        let memory = |settings| attention::memory(row, &settings, self.model.kind(), self.prepared.device);
        let of_layers = self.model.attentions().map(memory);
        of_layers.reduce(AttentionMemory::larger).unwrap_or(AttentionMemory { kept: 0, temporary: 0 })
    }

    /// Returns the bytes that the backward of a layer's attention takes beyond what the layer keeps. What the MLP kept is free by
    /// then.
    fn attention_backward(&self) -> u64 {
        let (c, [d, ..]) = (self.model.config(), self.sizes());
        let [q, kv] = [c.num_attention_heads, c.num_key_value_heads].map(|heads| (heads * c.head_dim) as u64);
        // The layer's result and the gradient of its input, that of attention's result in two layouts, and that of the values.
        let gradients = self.layer_rows() * (2 * d + 2 * q + kv) * self.width();
        let of_mlp = match self.mlp_tile() {
            None => self.layer_rows() * self.kept_numbers()[1] * self.width(),
            Some(_) => 0,
        };
        (self.attention().temporary + gradients).saturating_sub(of_mlp)
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
        // A weight held in a narrower format is widened while it is multiplied. The head is the largest such temporary. Of a
        // quantised head it is a part, whose logits are copied to those of the chunk if it is not all.
        let (stored, _) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let widened = match self.head_is_quantised() {
            true if tile(d * v) < d * v => (tile(d * v) + self.supervised.min(256) * tile(d * v) / d) * width,
            true => d * v * width,
            false if stored != self.model.kind() && !self.full() => d * v * width,
            false => 0,
        };
        chunk + self.supervised * d * width * 2 + widened
    }

    /// Returns the bytes of the largest part of a quantised weight that is dequantised at a time.
    fn dequantised(&self) -> u64 {
        let loaded = self.prepared.storage.quantisation().is_some();
        let quantised = self.model.params().base().filter(|p| match p.quantised {
            QuantisedParam::Never => false,
            QuantisedParam::Possible => loaded,
            QuantisedParam::Done(_) => true,
        });
        quantised.map(|p| tile(p.count())).max().unwrap_or(0) * self.width()
    }

    /// Returns true if the weight of the output head is stored quantised.
    fn head_is_quantised(&self) -> bool {
        let head = self.model.params().base().find(|p| self.is_head(p));
        head.is_some_and(|p| matches!(p.quantised, QuantisedParam::Done(_)))
    }

    /// Returns true for the weight of the output head, which may be that of the embedding.
    fn is_head(&self, p: &Param) -> bool {
        p.layer == LayerKind::Head || self.model.config().tie_word_embeddings && p.layer == LayerKind::Embedding
    }

    fn activations(&self, trained: &TrainedBytes) -> u64 {
        let ([d, _, v], width) = (self.sizes(), self.width());
        let (kept, head) = (self.kept(), self.head());
        if self.trains_head() && self.prepared.device != Device::Cpu {
            // The same as below, in libtorch's operations. The head's weight is cast for each chunk. While a chunk's
            // logits and their gradient are computed, the gradient of the chunks before exists; then the chunk's own is
            // made from the gradient of the logits, and cast.
            let cast = if width == 4 { 0 } else { width };
            let chunk = self.supervised.min(256) * v;
            let logits = d * v * (4 + cast) + chunk * (width + 12);
            let gradient = d * v * (4 + 4 + cast + cast) + chunk * width;
            let head = (logits.max(gradient) + self.supervised * d * width * 2).max(d * v * (4 + cast) + head);
            return (kept + head).saturating_sub(trained.gradients).max(d * v * 4);
        }
        if self.trains_head() {
            // In full fine-tuning the memory of activations is released while gradients are allocated, so only the
            // excess over the gradients counts. The first gradient is the head's, together with a narrow copy of its
            // weight and one chunk's part of the gradient; the last is the embedding's, in two formats.
            let (first, last) = (d * v * (4 + 2 * width), d * v * (4 + width));
            // The last layer's backward, while the head's gradient is the only one, takes more in recurrent models.
            let layer = if self.model.recurrence().is_some() { self.backward_of_layer() + d * v * 4 } else { 0 };
            return (kept + (head + first).max(layer)).saturating_sub(trained.gradients).max(last);
        }
        let backward = self.backward_of_layer() + 4 * self.module_memory().temporary + self.dequantised();
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
        let run = &self.plan.recipe.run;
        // Those that are kept, the best, and one that is being written.
        let checkpoints = (run.keep + run.result.averaged().unwrap_or(0)) as u64 + 2;
        (trained.masters + trained.optimiser) * checkpoints + 2 * result
    }
}

/// Returns how many of a quantised weight's numbers are dequantised at a time.
fn tile(numbers: u64) -> u64 {
    numbers.min(quantised::TILE as u64)
}

/// Returns (trained, all) numbers of parameters; of layers that are trained in turn, those that are trained at a time.
pub fn count(plan: &Plan, model: &Model) -> (u64, u64) {
    let all: u64 = model.params().base().map(Param::count).sum();
    let trained = match plan.recipe.adapter {
        Some(_) => model.params().trainable().map(Param::count).sum(),
        None => trained_of_base(plan, model).into_iter().map(Param::count).sum(),
    };
    (trained, all)
}

/// Returns the base's parameters that a run without adapter trains at a time. The tensors of a sketch do not say which they
/// are.
fn trained_of_base<'m>(plan: &Plan, model: &'m Model) -> Vec<&'m Param> {
    let selector = plan.recipe.model.trained.selector_at_a_time(model.depth());
    let trained = |p: &&Param| selector.as_ref().is_ok_and(|trained| trained(&p.name, p.layer));
    model.params().base().filter(trained).collect()
}

/// Counts the modules that `spec` adapts by the last part of their name, e.g. `q_proj` -> 30; `(whole)` marks modules
/// trained as a whole. Virtual tokens adapt none.
pub fn count_adapted_modules(model: &Model, spec: &AdapterSpec) -> Vec<(String, usize)> {
    if model.virtual_tokens() > 0 {
        return Vec::new();
    }
    let mut counts: Vec<(String, usize)> = Vec::new();
    let mut seen = BTreeSet::new();
    for p in model.params().trainable().filter(|p| p.adapter.is_some()) {
        let adapted = spec.module_of(&p.name);
        let module = adapted.unwrap_or(p.name.trim_end_matches(".weight"));
        if !seen.insert(module) {
            continue; // another parameter of the same module
        }
        let last = module.rsplit('.').next().unwrap_or(module);
        let shown = if adapted.is_some() { last.to_string() } else { format!("{last} (whole)") };
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
