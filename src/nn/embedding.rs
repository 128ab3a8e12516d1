//! Embedding tables, with the adapters attached to them.

use super::adapter::{Adapter, LayerAdapters};
use super::weight::{Weight, cast};
use tch::{Kind, Tensor};

/// An embedding table: one vector per token or position. Of a quantised table, only the rows that are looked up are
/// dequantised.
pub struct Embedding {
    pub(super) weight: Weight, // (V, D)
    pub(super) adapters: LayerAdapters,
    pub(super) kind: Kind,
}

impl Embedding {
    /// Returns the number of vectors.
    pub fn count(&self) -> i64 {
        self.weight.outputs()
    }

    /// Returns the vectors of `ids` under the active adapter, in the run's dtype: (T) -> (T, D).
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        if let Some(groups) = self.adapters.groups() {
            let rows = cast(&self.weight.rows(ids), self.kind);
            let adapted =
                |adapter: &dyn Adapter, rows: &Tensor, _| adapter.embed(&ids.index_select(0, rows), &self.weight);
            return self.adapters.replace_rows(&groups, rows, adapted);
        }
        let rows = match self.adapters.active() {
            Some(adapter) => adapter.embed(ids, &self.weight),
            None => self.weight.rows(ids),
        };
        cast(&rows, self.kind)
    }
}
