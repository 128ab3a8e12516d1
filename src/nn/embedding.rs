//! Embedding tables, with the adapters attached to them.

use super::adapter::LayerAdapters;
use super::ops::embedding_rows;
use super::weight::cast;
use tch::{Kind, Tensor};

/// An embedding table: one vector per token or position.
pub struct Embedding {
    pub(super) weight: Tensor, // (V, D)
    pub(super) adapters: LayerAdapters,
    pub(super) kind: Kind,
}

impl Embedding {
    /// Returns the number of vectors.
    pub fn count(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Returns the vectors of `ids` under the active adapter, in the run's dtype: (T) -> (T, D).
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let rows = match self.adapters.active() {
            Some(adapter) => adapter.embed(ids, &self.weight),
            None => embedding_rows(&self.weight, ids),
        };
        cast(&rows, self.kind)
    }
}
