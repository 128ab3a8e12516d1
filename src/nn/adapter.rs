//! The interfaces through which layers use adapters ([`Adapter`]) and the builder attaches them ([`AdapterPlan`]). The
//! kinds of adapters are in `crate::adapters`.

use super::joint_linear::LowRank;
use super::ops::embedding_rows;
use super::params::LayerKind;
use super::weight::{Dense, Weight};
use crate::error::Result;
use std::cell::Cell;
use std::rc::Rc;
use tch::Tensor;

/// A small trainable addition to one frozen layer.
pub trait Adapter {
    /// Computes the adapted layer's output: (…, in) -> (…, out). `train` turns dropout on.
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor;
    /// Returns the rows `ids` of the adapted embedding table `weight` (V, D): (T) -> (T, D).
    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        embedding_rows(&self.merged(weight), ids)
    }
    /// Returns the weight that gives the same output without the adapter; differentiable.
    fn merged(&self, weight: &Tensor) -> Tensor;
    /// Returns the bias that belongs to the merged weight.
    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias.shallow_clone()
    }
    /// Returns the update if the adapter is nothing but a low-rank update of the layer's own weight. `None` if it also
    /// needs dropout, which it does only with `train`.
    fn low_rank(&self, _train: bool) -> Option<LowRank<'_>> {
        None
    }
}

/// The active adapter of a model, and whether dropout is on; shared by all its layers.
#[derive(Default)]
pub struct AdapterSwitches {
    /// Number of the active adapter; `None`: the bare base.
    pub active: Cell<Option<usize>>,
    /// True while the model is trained: dropout is on.
    pub train: Cell<bool>,
}

/// The adapters attached to one layer, with their numbers in the model.
pub struct LayerAdapters {
    pub(super) switches: Rc<AdapterSwitches>,
    pub(super) list: Vec<(usize, Box<dyn Adapter>)>,
}

impl LayerAdapters {
    /// Returns this layer's part of the active adapter; `None` if none is active or it does not adapt this layer.
    pub fn active(&self) -> Option<&dyn Adapter> {
        self.by_id(self.switches.active.get()?)
    }

    pub(super) fn by_id(&self, id: usize) -> Option<&dyn Adapter> {
        self.list.iter().find(|(i, _)| *i == id).map(|(_, a)| &**a)
    }

    pub(super) fn train(&self) -> bool {
        self.switches.train.get()
    }
}

/// A layer that has just been built and that adapters may attach to.
pub struct AdapterSite<'a> {
    /// The module's name in the checkpoint.
    pub name: &'a str,
    /// The kind of the layer.
    pub layer: LayerKind,
    /// The frozen weight: (out, in) for linear layers, (V, D) for embeddings, (D) for norms.
    pub weight: &'a Weight,
    /// The frozen bias, if the layer has one.
    pub bias: Option<&'a Tensor>,
    /// True for an output head that shares the embedding's weight, and for that embedding.
    pub tied: bool,
}

/// Whether a parameter that an adapter registers is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamRole {
    /// Trained: it becomes a float32 leaf.
    Trained,
    /// Kept unchanged and saved with the adapter.
    Frozen,
}

/// Callback that registers an adapter's parameter under its name within the module, and returns the tensor to compute
/// with.
pub type RegisterParam<'a> = dyn FnMut(&str, Tensor, ParamRole) -> Tensor + 'a;

/// Attaches adapters to layers while a model is being built.
pub trait AdapterPlan {
    /// Returns the adapter for this layer, or `None` if it gets none. Parameters of the adapter are registered with
    /// `add`.
    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>>;

    /// Returns true if the weight of this module is trained in full: it is then never quantised.
    fn trains_in_full(&self, _name: &str, _layer: LayerKind) -> bool {
        false
    }

    /// Called after all layers have been offered; an error if the rules name a module that does not exist.
    fn check(&self) -> Result<()>;
}
