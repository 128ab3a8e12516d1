//! The change that trained rows make to a table, for merging.

use crate::adapters::update::WeightUpdate;
use tch::{Device, Kind, Tensor};

/// Replaces rows of an embedding or head.
pub(in crate::adapters) struct TokenRowsUpdate {
    /// (k)
    pub ids: Vec<i64>,
    /// (k, D)
    pub rows: Tensor,
}

impl WeightUpdate for TokenRowsUpdate {
    fn add(&self, sum: &mut Tensor, base: &Tensor, factor: f64, _transposed: bool) {
        let ids = Tensor::from_slice(&self.ids);
        let change =
            self.rows.to_device(Device::Cpu).to_kind(Kind::Float) - base.index_select(0, &ids).to_kind(Kind::Float);
        let _ = sum.index_add_(0, &ids, &(change * factor));
    }

    fn fits(&self, shape: &[i64], _transposed: bool) -> bool {
        let &[count, width] = shape else { return false };
        self.rows.size() == [self.ids.len() as i64, width] && self.ids.iter().all(|id| (0..count).contains(id))
    }

    fn is_table(&self) -> bool {
        true
    }

    fn shape(&self) -> String {
        format!("{:?} for the tokens {:?}", self.rows.size(), self.ids)
    }
}
