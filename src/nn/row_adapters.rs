//! Rows of one decoding step that different adapters compute.
//!
//! The layer of the base is computed once for all rows. Each adapter then replaces the results of its own rows: by its
//! update of the base's result ([`Adapter::add_update`](super::Adapter::add_update)), or by computing the layer for these
//! rows again.

use super::adapter::{Adapter, LayerAdapters};
use crate::native::upload;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Device, Tensor};

/// Which adapter computes which row of a decoding step.
#[derive(Debug)]
pub enum RowAdapters {
    /// All rows have the adapter with this number; `None`: the bare base.
    Same(Option<usize>),
    /// Rows of different adapters, on the model's device. Rows that are in no group are the bare base's.
    Groups(Rc<[RowGroup]>),
}

/// The rows of one adapter.
#[derive(Debug)]
pub struct RowGroup {
    /// The adapter's number.
    pub(super) adapter: usize,
    /// (n) int64, ascending.
    pub(super) rows: Tensor,
}

impl RowAdapters {
    /// Groups rows by their adapters: row i has the adapter with number `adapters[i]`, or is the bare base's.
    pub fn new(adapters: &[Option<usize>], device: Device) -> Self {
        let first = adapters.first().copied().flatten();
        if adapters.iter().all(|adapter| *adapter == first) {
            return Self::Same(first);
        }
        let mut rows: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for (row, adapter) in adapters.iter().enumerate() {
            if let Some(adapter) = adapter {
                rows.entry(*adapter).or_default().push(row as i64);
            }
        }
        let group = |(adapter, rows): (usize, Vec<i64>)| {
            let [rows] = upload([Tensor::from_slice(&rows)], device);
            RowGroup { adapter, rows }
        };
        Self::Groups(rows.into_iter().map(group).collect())
    }
}

impl LayerAdapters {
    /// Replaces the results of adapted rows in `y` (S, …), which are those of the base: `f` gets the adapter of a group, its
    /// rows (n), and their results (n, …). Rows of adapters that do not adapt this layer stay as they are.
    pub(super) fn replace_rows(
        &self,
        groups: &[RowGroup],
        y: Tensor,
        f: impl Fn(&dyn Adapter, &Tensor, Tensor) -> Tensor,
    ) -> Tensor {
        let mut y = y;
        for RowGroup { adapter, rows } in groups {
            if let Some(adapter) = self.by_id(*adapter) {
                let replaced = f(adapter, rows, y.index_select(0, rows));
                let _ = y.index_copy_(0, rows, &replaced.to_kind(y.kind()));
            }
        }
        y
    }
}
