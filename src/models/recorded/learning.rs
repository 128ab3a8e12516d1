//! Records forward and backward of micro-batches.

use crate::error::{Error, Result};
use crate::models::{LayerReplay, Metrics, MicroBatch, Model};
use crate::native::{self, Graph, GraphMemory};
use crate::nn::TensorPlace;
use std::collections::VecDeque;
use tch::{Kind, Tensor};

/// Number of recorded shapes that are kept. Each takes the driver memory for its launches, and the time of one pass to record.
const MOST_SHAPES: usize = 32;

/// Number of passes that are computed plainly before one is recorded.
const PLAIN_PASSES: usize = 2;

/// Returns the length to which a row of `length` tokens is padded: a multiple of an eighth of the power of two below it, at least of 32
/// and at most of 256. So few lengths differ, and little is padding.
pub fn padded_length(length: usize) -> usize {
    let step = (length.max(1).next_power_of_two() / 16).clamp(32, 256);
    length.next_multiple_of(step)
}

/// Returns the number of segments to which `segments` and one with padding are filled up with empty ones: a power of two.
pub fn padded_segments(segments: usize) -> usize {
    (segments + 1).next_power_of_two()
}

/// Returns the number of targets to which `targets` in a row of `length` tokens are filled up: a multiple of a quarter of its padded length.
pub fn padded_targets(targets: usize, length: usize) -> usize {
    targets.next_multiple_of((padded_length(length) / 4).max(32))
}

/// Learns from micro-batches by recorded passes. Gradients stay in the same tensors from step to step, to which each pass adds.
pub struct RecordedLearning {
    /// The factor on the loss that recorded passes read: 1 / items, times the factor of a float16 run. A float32 scalar.
    factor: Tensor,
    /// The factor of a float16 run.
    loss_scale: Option<Tensor>,
    shapes: VecDeque<RecordedShape>,
    /// The shapes of earlier batches that were not recorded.
    seen: VecDeque<BatchShape>,
    memory: Option<GraphMemory>,
    /// Passes that were computed plainly since the gradients lie where they do.
    plain: usize,
    /// Where the gradients lie that the passes add to.
    gradients: Vec<TensorPlace>,
}

/// What the operations of a batch depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BatchShape {
    inputs: Vec<(Vec<i64>, Kind)>,
    longest: i64,
    adapter: Option<String>,
}

struct RecordedShape {
    shape: BatchShape,
    graph: Graph,
    inputs: Vec<Tensor>,
    metrics: Metrics,
}

impl BatchShape {
    fn of(batch: &dyn MicroBatch, inputs: &[&Tensor]) -> Self {
        Self {
            inputs: inputs.iter().map(|t| (t.size(), t.kind())).collect(),
            longest: batch.tokens().segments.longest,
            adapter: batch.adapter().map(str::to_string),
        }
    }
}

impl RecordedLearning {
    /// Returns a learner without recorded passes. `loss_scale` is the factor on the loss of a float16 run.
    pub fn new(model: &Model, loss_scale: Option<&Tensor>) -> Self {
        Self {
            factor: Tensor::ones([], (Kind::Float, model.device())),
            loss_scale: loss_scale.map(Tensor::shallow_clone),
            shapes: VecDeque::new(),
            seen: VecDeque::new(),
            memory: None,
            plain: 0,
            gradients: Vec::new(),
        }
    }

    /// Does what [`Model::learn`] does without recomputing layers. A pass is recorded when its shape comes the second time, but not before
    /// two passes were computed plainly. The first of these makes what is kept between passes, such as gradients and casts of factors. The
    /// second adds to gradients, as recorded passes do, so that every kernel is loaded.
    pub fn learn(&mut self, model: &Model, batch: &dyn MicroBatch, items: f64) -> Result<Metrics> {
        model.check(batch.tokens(), &[])?;
        let inputs = batch.recorded_inputs().ok_or_else(|| Error::bug("a batch that cannot be recorded"))?;
        let shape = BatchShape::of(batch, &inputs);
        let gradients = gradient_places(model);
        if gradients != self.gradients {
            // A pass adds to gradients where they lay when it was recorded.
            self.shapes.clear();
            (self.memory, self.plain, self.gradients) = (None, 0, gradients);
        }
        self.set_factor(items);
        model.set_loss_scale(Some(self.factor.shallow_clone()));
        let metrics = self.learn_shape(model, batch, &inputs, shape);
        model.set_loss_scale(self.loss_scale.as_ref().map(Tensor::shallow_clone));
        if self.gradients.is_empty() {
            self.gradients = gradient_places(model);
        }
        metrics
    }

    fn set_factor(&mut self, items: f64) {
        let _ = match &self.loss_scale {
            Some(scale) => self.factor.fill_tensor_(&(scale * (1.0 / items))),
            None => self.factor.fill_(1.0 / items),
        };
    }

    fn learn_shape(
        &mut self,
        model: &Model,
        batch: &dyn MicroBatch,
        inputs: &[&Tensor],
        shape: BatchShape,
    ) -> Result<Metrics> {
        if let Some(at) = self.shapes.iter().position(|recorded| recorded.shape == shape) {
            let recorded = self.shapes.remove(at).expect("just found");
            let inputs: Vec<Tensor> = inputs.iter().map(|t| t.shallow_clone()).collect();
            native::copy_all(&recorded.inputs, &inputs)?;
            recorded.graph.replay()?;
            let metrics = recorded.metrics.copy_for(batch.items());
            self.shapes.push_back(recorded); // the one that was used last
            return Ok(metrics);
        }
        let known = self.seen.contains(&shape);
        if !known || self.plain < PLAIN_PASSES {
            if !known {
                self.seen.push_back(shape);
            }
            if self.seen.len() > 4 * MOST_SHAPES {
                self.seen.pop_front();
            }
            self.plain += 1;
            return model.learn(batch, 1.0, LayerReplay::None);
        }
        self.seen.retain(|seen| *seen != shape);
        if self.shapes.len() == MOST_SHAPES {
            self.shapes.pop_front();
        }
        // What plain passes took is not for recorded ones, and could not be returned while one is recorded.
        native::release_cached_cuda_memory()?;
        model.forget_casts();
        let inputs = inputs.iter().map(|t| t.shallow_clone()).collect();
        let pass = || model.learn(batch, 1.0, LayerReplay::None);
        let (graph, metrics) = Graph::record(model.device(), self.memory, pass)?;
        self.memory.get_or_insert(graph.memory()?);
        graph.replay()?;
        let result = metrics.copy_for(batch.items());
        self.shapes.push_back(RecordedShape { shape, graph, inputs, metrics });
        Ok(result)
    }
}

/// Returns the places of all gradients that there are.
fn gradient_places(model: &Model) -> Vec<TensorPlace> {
    let gradients = model.params().trainable().map(|p| p.tensor.grad());
    gradients.filter(Tensor::defined).map(|g| TensorPlace::of(&g)).collect()
}
