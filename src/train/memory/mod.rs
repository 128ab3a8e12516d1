//! Predicts the memory and disk space that a run needs, from the shapes of its tensors, before it starts.
//!
//! layers: what layers keep for their backward, and what it takes. head: the output head, and the peak of activations.
//! sampling: methods that generate answers.

mod head;
mod layers;
mod sampling;

use super::optim;
use super::prepare::Prepared;
use super::prepare::cuda_graphs;
use super::prepare::formats::result_kind;
use crate::adapters::AdapterSpec;
use crate::machine;
use crate::methods::parts::ModelParts;
use crate::models::{Dtype, Heads, Model, layer_number, padded_length, padded_targets};
use crate::native;
use crate::nn::{LayerKind, Param};
use crate::recipe::optim::Master;
use crate::recipe::plan::Plan;
use serde::Serialize;
use std::collections::BTreeSet;
use tch::Device;

/// Predicted needs of a run, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ResourceEstimate {
    /// Frozen weights in the format in which they are held. On the CPU, weights held in the format of their file are
    /// mapped.
    pub weights: u64,
    /// Master weights, gradients and optimiser state of the trained parameters.
    pub training: u64,
    /// Activations that a packed row keeps for its backward pass, and the largest temporary tensors; or the tables of keys and
    /// values of answers that are sampled on a GPU, if they take more. Twice these activations where passes are recorded.
    pub activations: u64,
    /// Buffers of the GPU's library of products (cuBLAS).
    pub buffers: u64,
    /// Sum of the four above.
    pub memory: u64,
    /// Page-locked memory of the host: the inputs of layers that `run.offload` keeps there.
    pub host: u64,
    /// Checkpoints and the result, with space for the new copy while one replaces another.
    pub disk: u64,
    /// Results of norms and activations are kept for the backward, because there is memory for them. Otherwise, and always on
    /// the CPU, they are computed again.
    pub keeps_inputs: bool,
}

/// Share of the free memory that is planned with. Predictions are accurate to 15 %.
pub const SHARE: f64 = 0.87;

/// Predicts the needs of a run under `plan`. `model` is the sketch of its model; a packed row has at most `row` tokens,
/// of which `supervised` are trained on. Answers are sampled in a part of `capacity`, the free bytes; `None`: unknown. On a GPU
/// results of norms and activations are kept if no layer is computed again and all fits into [`SHARE`] of the capacity.
pub fn predict(
    prepared: &Prepared,
    plan: &Plan,
    model: &Model,
    (row, supervised): (u64, u64),
    capacity: Option<u64>,
) -> ResourceEstimate {
    let recipe = &plan.recipe;
    let parts = recipe.method.parts(recipe.adapter.as_ref()).unwrap_or_default();
    let (row, supervised) = match cuda_graphs::records_passes(recipe) {
        true => (padded_length(row as usize) as u64, padded_targets(supervised as usize, row as usize) as u64),
        false => (row, supervised),
    };
    let recomputing = RunShape { prepared, plan, model, parts, row, supervised, keeps_inputs: false };
    let may_keep = prepared.device.is_cuda() && recomputing.runs_layers_once();
    let needs = recomputing.estimate(capacity);
    if let Some(capacity) = capacity.filter(|_| may_keep) {
        let keeping = RunShape { keeps_inputs: true, ..recomputing }.estimate(Some(capacity));
        if keeping.memory <= (capacity as f64 * SHARE) as u64 {
            return keeping;
        }
    }
    needs
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
    /// Results of norms and activations are kept.
    keeps_inputs: bool,
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

impl RunShape<'_> {
    /// Predicts the needs; answers are sampled in a part of `capacity`.
    fn estimate(&self, capacity: Option<u64>) -> ResourceEstimate {
        let trained = self.trained_bytes();
        let (weights, training) = (self.weights(), trained.total());
        // There are no gradients while answers are sampled.
        let sampling = self.sampling(&trained, capacity).saturating_sub(trained.gradients);
        // What recorded passes take is not used for passes that are not.
        let passes = if cuda_graphs::records_passes(&self.plan.recipe) { 2 } else { 1 };
        let activations = (passes * self.activations(&trained)).max(sampling);
        let (buffers, host, disk) = (product_buffers(self.prepared.device), self.offloaded(), self.disk(&trained));
        let memory = weights + training + activations + buffers;
        let keeps_inputs = self.keeps_inputs;
        ResourceEstimate { weights, training, activations, buffers, memory, host, disk, keeps_inputs }
    }

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
        let below_all = trained.iter().any(|p| matches!(p.layer, LayerKind::Embedding | LayerKind::Table));
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
        frozen + held * self.parts.base_copies + others + self.factor_casts()
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

/// Returns the bytes of cuBLAS's buffers: libtorch gives each thread that multiplies on a GPU one of them, and a step has two
/// such threads, one forward and one backward.
fn product_buffers(device: Device) -> u64 {
    match device {
        Device::Cuda(_) => 2 * buffer_size(&std::env::var("CUBLAS_WORKSPACE_CONFIG").unwrap_or_default()),
        _ => 0,
    }
}

/// Returns the bytes of a buffer for a value of `CUBLAS_WORKSPACE_CONFIG`: pairs `:SIZE:COUNT`, sizes in KiB. A value that is
/// none gives libtorch's default for new GPUs.
fn buffer_size(config: &str) -> u64 {
    let numbers: Option<Vec<u64>> =
        config.strip_prefix(':').map_or(Some(Vec::new()), |pairs| pairs.split(':').map(|n| n.parse().ok()).collect());
    match numbers {
        Some(numbers) if !numbers.is_empty() && numbers.len() % 2 == 0 => {
            numbers.chunks(2).map(|pair| pair[0] * 1024 * pair[1]).sum()
        }
        _ => 4096 * 1024 * 8,
    }
}

/// Returns the free bytes of the device's memory; `None` if the system does not report them.
pub fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(i) => native::cuda_capacity(i).ok().map(|(free, _)| free),
        _ => Some(machine::SystemMemory::read().free).filter(|free| *free > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::buffer_size;

    #[test]
    fn buffers_of_products_have_the_size_that_their_variable_says() {
        let found = [":4096:8", ":16:8", ":4096:2:16:8", "", ":16", ":a:8"].map(buffer_size);
        assert_eq!(found, [33_554_432, 131_072, 8_519_680, 33_554_432, 33_554_432, 33_554_432]);
    }
}
