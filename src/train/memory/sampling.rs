//! Predicts the memory of answers that a method samples on a GPU: tables of keys and values, and a step's logits.

use super::{RunShape, TrainedBytes};
use crate::generate::engine::BatchLimits;

/// Bytes for each logit of a decoding step: in the model's format and in float32, and the probabilities in float64.
const LOGIT: u64 = 16;

impl RunShape<'_> {
    /// Returns the bytes that sampling takes besides weights, trained parameters and the optimiser's state; 0 on the CPU, where
    /// tables take what is written, and for methods that sample nothing. As the engine does, it takes half of what `capacity`
    /// leaves at most, but room for one answer.
    pub(super) fn sampling(&self, trained: &TrainedBytes, capacity: Option<u64>) -> u64 {
        let (Some(sampled), true) = (self.parts.sampled, self.prepared.device.is_cuda()) else { return 0 };
        let mut layout = self.model.cache_layout();
        layout.device = self.prepared.device;
        let token = layout.tables() * layout.row_bytes(self.model.config().head_dim, self.model.kind());
        let prompt = self.prepared.rows.train().lengths.iter().max().map_or(0, |n| u64::from(*n));
        let longest = prompt + sampled.new_tokens + self.adapter().virtual_tokens;
        let held = self.weights() + trained.masters + trained.optimiser;
        let room = capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(held) / 2);
        let limits = BatchLimits::of_layout(&layout, token, room);
        let rows = (limits.rows_of(longest as usize, &layout) as u64).clamp(1, sampled.count.max(1));
        let [_, _, vocabulary] = self.sizes();
        rows * (token * layout.kept_tokens(longest as i64) as u64 + vocabulary * LOGIT)
    }
}
