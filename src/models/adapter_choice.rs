//! The adapters of a model: which of them is active, and what their files contain.

use super::checkpoint::SCORE;
use super::model::Model;
use crate::nn::virtual_tokens::PROMPT_EMBEDDINGS;
use crate::nn::{AdapterSwitches, RowAdapters};
use std::cell::Cell;
use std::collections::BTreeMap;
use tch::Tensor;

impl Model {
    /// Returns the tensors of an adapter's file, by name: its parameters, or the virtual tokens that it computes from
    /// them, and a scalar head.
    pub fn adapter_tensors(&self, id: usize) -> BTreeMap<String, Tensor> {
        match &self.virtual_tokens[id] {
            Some(tokens) => {
                let encoded = (PROMPT_EMBEDDINGS.to_string(), tch::no_grad(|| tokens.encode()).detach());
                let head = self.store.adapter(id).find(|p| p.name == SCORE);
                let head = head.map(|p| (p.name.clone(), p.tensor.shallow_clone()));
                head.into_iter().chain([encoded]).collect()
            }
            None => self.store.adapter(id).map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect(),
        }
    }

    /// Returns the number of the adapter called `name`, or `None`.
    pub fn adapter_id(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|n| n == name)
    }

    /// Stops the training of an adapter: its parameters require no gradient and are hidden from optimisers. Panics
    /// for an unknown name.
    pub fn freeze_adapter(&self, adapter: &str) {
        let id = self.adapter_id(adapter).unwrap_or_else(|| panic!("no adapter `{adapter}`"));
        self.store.adapter(id).for_each(|p| drop(p.tensor.shallow_clone().set_requires_grad(false)));
    }

    /// Returns the name of the active adapter; `None`: the bare base.
    pub fn active_adapter(&self) -> Option<&str> {
        self.switches.active.get().map(|i| self.adapters[i].as_str())
    }

    /// Runs `f` with the named adapter active, or with the bare base for `None`. The previous adapter is active again
    /// afterwards, after a panic too. Panics for an unknown name.
    pub fn with_adapter<R>(&self, adapter: Option<&str>, f: impl FnOnce(&Self) -> R) -> R {
        let id = adapter.map(|name| self.adapter_id(name).unwrap_or_else(|| panic!("no adapter `{name}`")));
        self.with_adapter_id(id, f)
    }

    /// Returns the number of the active adapter; `None`: the bare base.
    pub fn active_adapter_id(&self) -> Option<usize> {
        self.switches.active.get()
    }

    /// Does the same for the adapter with this number.
    pub fn with_adapter_id<R>(&self, id: Option<usize>, f: impl FnOnce(&Self) -> R) -> R {
        let _back = RestoreOnDrop { cell: &self.switches.active, value: self.switches.active.replace(id) };
        f(self)
    }

    /// Returns true if rows of several adapters may share a decoding step. Not so if an expert's rows are other rows than the
    /// step's, or if a sequence may be computed again as a whole in the middle of decoding (LongRoPE).
    pub fn mixes_adapters(&self) -> bool {
        self.config().experts.is_none() && self.decoder.rotation_switch().is_none()
    }

    /// Runs `f`, in which decoding steps ([`Model::next_logits`]) compute each row with its adapter. Afterwards, after a
    /// panic too, all rows have the active adapter again.
    pub fn with_row_adapters<R>(&self, adapters: &RowAdapters, f: impl FnOnce(&Self) -> R) -> R {
        struct Back<'a>(&'a AdapterSwitches);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.groups.replace(None);
            }
        }
        match adapters {
            RowAdapters::Same(id) => self.with_adapter_id(*id, f),
            RowAdapters::Groups(groups) => {
                self.switches.groups.replace(Some(groups.clone()));
                let _back = Back(&self.switches);
                f(self)
            }
        }
    }
}

/// Restores a cell's previous value when dropped, after a panic too.
pub(super) struct RestoreOnDrop<'a, T: Copy> {
    pub(super) cell: &'a Cell<T>,
    pub(super) value: T,
}

impl<T: Copy> Drop for RestoreOnDrop<'_, T> {
    fn drop(&mut self) {
        self.cell.set(self.value);
    }
}
