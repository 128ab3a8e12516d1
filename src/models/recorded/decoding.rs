//! Records decoding steps.

use crate::error::Result;
use crate::models::Model;
use crate::native::{Graph, GraphMemory};
use crate::nn::{KvCache, TensorPlace, Tokens};
use tch::Tensor;

/// A decoding step of a batch. It does the next step of the same sequences, as long as the cache's tensors stay where they are.
pub struct RecordedStep {
    graph: Graph,
    /// Where everything lies that it reads of the cache.
    places: Vec<TensorPlace>,
    /// The tokens that it reads.
    tokens: Tokens,
    /// (S, V) float32: what it writes.
    logits: Tensor,
}

impl Model {
    /// Records the step that `next_logits` does, and does it: ids (S) -> logits (S, V) float32, which the next run overwrites. An
    /// earlier step with the same adapters must have been computed, so that everything that is kept between steps exists. `memory` is that
    /// of an earlier recording whose results are no longer needed. The thread's current stream must be one that can be recorded
    /// (`native::OwnStream`).
    pub fn record_next_logits(
        &self,
        ids: &Tensor,
        cache: &mut KvCache,
        memory: Option<GraphMemory>,
    ) -> Result<(RecordedStep, Tensor)> {
        cache.reserve(&vec![1; cache.lengths.len()]);
        let places = cache.step_places();
        let tokens = Tokens::one_each(ids.copy(), cache.next_positions(), cache.step_bounds());
        let (graph, logits) = Graph::record(self.device(), memory, || self.next_logits(&tokens.ids, cache))?;
        graph.replay()?;
        let result = logits.shallow_clone();
        Ok((RecordedStep { graph, places, tokens, logits }, result))
    }
}

impl RecordedStep {
    /// Gives up the step, but for its memory, which the next recording can use.
    pub fn into_graph(self) -> Graph {
        self.graph
    }

    /// Does the next step: ids (S) -> logits (S, V) float32, which the next run overwrites. Returns `None`, with nothing done, if the
    /// cache's tensors do not lie where they did.
    pub fn run(&self, model: &Model, ids: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
        cache.reserve(&vec![1; cache.lengths.len()]);
        if self.places != cache.step_places() {
            return Ok(None);
        }
        model.check(&self.tokens, &cache.lengths)?;
        self.tokens.ids.shallow_clone().copy_(ids);
        self.graph.replay()?;
        cache.count_recorded_step();
        Ok(Some(self.logits.shallow_clone()))
    }
}
