//! Predicts what layers keep for their backward pass, and the largest tensors that exist while one of them runs backward.

use super::RunShape;
use crate::adapters::HEAD;
use crate::adapters::kind::AdapterActivations;
use crate::models::expert_number;
use crate::native;
use crate::nn::{AttentionMemory, AttentionRow, Cell, LayerKind, attention};
use crate::recipe::sections::ReplayChoice;
use std::collections::{BTreeMap, BTreeSet};

/// What the adapters of all modules take.
#[derive(Default)]
pub(super) struct MemoryOfModules {
    /// Numbers per token that are kept for the backward: by those of attention, and by those of the MLP.
    kept: [u64; 2],
    /// Float32 numbers that one of them computes for a moment, at most.
    pub(super) temporary: u64,
}

impl RunShape<'_> {
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

    /// Returns the numbers that a layer keeps for its backward pass, per token, besides attention's: of attention with its
    /// norms, and of the MLP.
    pub(super) fn kept_numbers(&self) -> [u64; 2] {
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
        // The results of two norms and of the activation. With dropout each layer keeps its own copy anyway.
        // Experts' activations are kept once more, multiplied by the weights of their tokens.
        let scaled_again = if c.experts.is_some() { f } else { 0 };
        let of_norm = if self.model.more_numbers().without_first_norms { 0 } else { d };
        let kept = if self.keeps_inputs && !dropout { [of_norm, of_norm + f + scaled_again] } else { [0; 2] };
        std::array::from_fn(|i| plain[i] + low_rank[i] + dropped[i] + scaled[i] + of_modules[i] + kept[i])
    }

    /// Returns the rows of which a layer computes its MLP at a time, if they are not all.
    fn mlp_tile(&self) -> Option<u64> {
        self.plan.recipe.run.mlp_tile.map(|tile| tile as u64).filter(|tile| *tile < self.layer_rows())
    }

    /// Returns the bytes that all layers keep for their backward pass.
    pub(super) fn kept(&self) -> u64 {
        let ([d, ..], rows, more) = (self.sizes(), self.layer_rows(), self.model.more_numbers());
        let depth = self.model.config().num_hidden_layers as u64;
        let layer = match self.model.recurrence() {
            Some(cell) => self.recurrent_layer(cell),
            None => {
                let [of_attention, of_mlp] = self.kept_numbers();
                let of_mlp = if self.mlp_tile().is_some() { 0 } else { of_mlp + more.kept_in_mlp as u64 };
                let again = if self.joins_layers() { more.kept_if_joined } else { 0 };
                let numbers = of_attention + of_mlp + (more.kept + again) as u64;
                rows * (self.width() * numbers + self.routing()) + self.attention().kept
            }
        };
        let replayed = self.replayed();
        let keeping = depth - replayed.max(self.layers_below());
        // Replayed layers are recomputed one at a time, after the other layers have released their activations.
        let again = if replayed > 0 { layer } else { 0 };
        // One that is offloaded is copied while the layer above it is computed.
        let inputs = if self.plan.recipe.run.offload { replayed.min(2) } else { replayed };
        let around = if replayed == 0 { more.around_layers as u64 } else { 0 };
        // On CUDA low-rank results are columns of a layer's sum, which is kept beside its input where layers do not run in order.
        let sums = if replayed > 0 && self.joins_layers() { d * keeping } else { 0 };
        let kept =
            rows * self.width() * ((d + more.between_layers as u64) * inputs + more.handed_on as u64 + around + sums);
        kept + (layer * keeping).max(again)
    }

    /// Returns true if the backward runs no layer again, and no part of one.
    pub(super) fn runs_layers_once(&self) -> bool {
        self.replayed() == 0 && self.plan.recipe.run.mlp_tile.is_none() && self.model.recurrence().is_none()
    }

    /// Returns the number of layers that run again in the backward.
    fn replayed(&self) -> u64 {
        let depth = self.model.depth() as u64;
        match self.plan.recipe.run.replay {
            ReplayChoice::None => 0,
            ReplayChoice::Layers(n) => depth.min(n as u64),
            ReplayChoice::All => depth,
        }
    }

    /// Returns the bytes of page-locked memory for the inputs of layers that are kept there: of all but the last one that runs
    /// again. libtorch rounds each up to a power of two.
    pub(super) fn offloaded(&self) -> u64 {
        let d = self.sizes()[0] + self.model.more_numbers().between_layers as u64;
        let copies = if self.plan.recipe.run.offload { self.replayed().saturating_sub(1) } else { 0 };
        copies * (self.layer_rows() * self.width() * d).next_power_of_two()
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
    pub(super) fn backward_of_layer(&self) -> u64 {
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
        // The gradients of the layer's result and of its input, and those of what lies between them.
        let streams = 4 * self.layer_rows() * self.model.more_numbers().between_layers as u64 * width;
        of_mlp.max(self.attention_backward()) + streams
    }

    /// Returns what the adapter adds to the activations of a layer.
    pub(super) fn adapter(&self) -> AdapterActivations {
        self.plan.recipe.adapter.as_ref().map(|adapter| adapter.activations()).unwrap_or_default()
    }

    /// Returns the number of segments of a packed row.
    fn segments(&self) -> u64 {
        let lengths = self.prepared.rows.train().lengths;
        let all: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
        (self.row * lengths.len() as u64).checked_div(all).unwrap_or(0).max(1)
    }

    /// Returns the rows that layers compute: the tokens of a packed row, and the virtual tokens before its segments.
    pub(super) fn layer_rows(&self) -> u64 {
        self.row + self.segments() * self.adapter().virtual_rows
    }

    /// Returns what the adapters of all modules keep per token, and the most that one of them computes for a moment.
    pub(super) fn module_memory(&self) -> MemoryOfModules {
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

    /// Returns true if linear layers are computed with the factors A below their weights.
    fn joins_layers(&self) -> bool {
        let AdapterActivations { rank, dropout, .. } = self.adapter();
        let (stored, _) = self.model.storage_summary_as(self.prepared.storage, self.prepared.device);
        let mut linear = self.model.params().base().filter(|p| p.layer == LayerKind::Linear);
        let plain = stored == self.model.kind() && !linear.any(|p| self.is_quantised(p));
        rank > 0 && !dropout && plain && self.has_own_kernels()
    }

    /// Returns the bytes of the factors in the dtype of the products, which a GPU keeps: A below the weights, and B of layers that are
    /// computed together as blocks of one matrix.
    pub(super) fn factor_casts(&self) -> u64 {
        let Some(spec) = self.plan.recipe.adapter.as_ref().filter(|_| self.joins_layers()) else { return 0 };
        let (params, rank) = (self.model.params(), self.adapter().rank);
        let adapted: BTreeSet<&str> = params.adapter(0).filter_map(|p| spec.module_of(&p.name)).collect();
        let numbers = params.base().filter(|p| p.layer == LayerKind::Linear).filter_map(|p| {
            let module = p.name.strip_suffix(".weight").filter(|module| adapted.contains(module))?;
            let together = match module.rsplit('.').next()? {
                "q_proj" | "k_proj" | "v_proj" => 3,
                "gate_proj" | "up_proj" => 2,
                _ => 1,
            };
            let [outputs, inputs] = <[i64; 2]>::try_from(p.shape()).ok()?;
            Some(rank * (inputs as u64 + outputs as u64 * if rank <= 64 { together } else { 1 }))
        });
        numbers.sum::<u64>() * self.width()
    }

    /// Returns the bytes that our own kernel takes for the gradients of a layer's factors.
    fn sums_of_chunks(&self) -> u64 {
        let (c, [d, f, _]) = (self.model.config(), self.sizes().map(|n| n as i64));
        let rank = self.adapter().rank as i64;
        let [q, kv] = [c.num_attention_heads, c.num_key_value_heads].map(|heads| heads * c.head_dim);
        let of_a = [[d, 3 * rank], [q, rank], [d, 2 * rank], [f, rank]];
        let of_b = [q, kv, kv, d, f, f, d].map(|outputs| [outputs, rank]);
        native::cuda::factor_product_bytes(self.layer_rows() as i64, &[&of_a[..], &of_b].concat())
    }

    /// Returns the bytes that the backward of a layer's attention takes beyond what the layer keeps. What the MLP kept is free by
    /// then.
    fn attention_backward(&self) -> u64 {
        let (c, [d, f, _]) = (self.model.config(), self.sizes());
        let [q, kv] = [c.num_attention_heads, c.num_key_value_heads].map(|heads| (heads * c.head_dim) as u64);
        let of_numbers = |numbers: u64| self.layer_rows() * numbers * self.width();
        // The gradients of the layer's result and of its input, that of attention's result in two layouts, and that of the values.
        let of_kernel = self.attention().temporary + of_numbers(2 * d + 2 * q + kv);
        // Where the gradients of a layer's factors are computed at once, inputs of the MLP's linear layers, the gradients of their
        // results, and the results themselves, of which low-rank results are columns, exist until then. They are computed when those
        // of queries, keys and values are there.
        let of_layer = match self.keeps_inputs && self.joins_layers() {
            true => {
                let of_factors = of_numbers(2 * d + q + 2 * kv) + self.sums_of_chunks();
                of_kernel.max(of_factors) + of_numbers(5 * f + 3 * d)
            }
            false => of_kernel,
        };
        let of_mlp = match self.mlp_tile() {
            None => of_numbers(self.kept_numbers()[1]),
            Some(_) => 0,
        };
        of_layer.saturating_sub(of_mlp)
    }
}
