//! The interfaces through which layers use adapters ([`Adapter`]) and the builder attaches them ([`AdapterPlan`]). The
//! kinds of adapters are in `crate::adapters`.

use super::joint_linear::{FactorCasts, LowRank};
use super::ops::embedding_rows;
use super::params::LayerKind;
use super::row_adapters::RowGroup;
use super::virtual_tokens::{ModelSizes, VirtualTokens};
use super::weight::{Dense, Weight};
use crate::error::Result;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tch::Tensor;

/// A small trainable addition to one frozen layer.
pub trait Adapter {
    /// Computes the adapted layer's output: (…, in) -> (…, out). `train` turns dropout on.
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor;
    /// Returns the rows `ids` of the adapted embedding table `weight` (V, D): (T) -> (T, D).
    fn embed(&self, ids: &Tensor, weight: &Weight) -> Tensor {
        embedding_rows(&self.merged(&weight.dense(weight.kind())), ids)
    }
    /// Returns the weight that gives the same output without the adapter; differentiable.
    fn merged(&self, weight: &Tensor) -> Tensor;
    /// Returns the bias that belongs to the merged weight.
    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        bias.shallow_clone()
    }
    /// Returns true if the adapter adds the same vector to every row of a linear layer's output, even without a bias of the
    /// base.
    fn adds_bias(&self) -> bool {
        false
    }
    /// Adds the adapter's update to `y` (S, out), the frozen layer's results for x (S, in), in decoding; may overwrite y.
    /// `None` if its results do not follow from y: then the layer is computed again.
    fn add_update(&self, _y: Tensor, _x: &Tensor) -> Option<Tensor> {
        None
    }
    /// Returns the adapter as something that can be computed together with other layers of the same input. `None` if it
    /// is anything else, also if it needs dropout, which it does only with `train`.
    fn joint_form(&self, _train: bool) -> Option<JointForm> {
        None
    }
    /// Returns the adapter of an output head that shares the weight of the embedding that this one adapts; `None` for kinds
    /// that do not adapt both as one.
    fn for_tied_head(&self) -> Option<Box<dyn Adapter>> {
        None
    }
    /// Returns true if the layer may be joined with others in memory: see `LowRank::joinable`. Asked for at every
    /// forward pass.
    fn joinable(&self) -> bool {
        self.joint_form(true).and_then(|form| form.update).is_some_and(|update| update.joinable())
    }
    /// Returns the factors A (R, in) and B (out, R) of the update if they are parameters. Asked for at every forward pass.
    fn factor_parameters(&self) -> Option<[Tensor; 2]> {
        let update = self.joint_form(true)?.update?;
        update.parameters.then_some(update.masters)
    }
}

/// An adapted layer as `output_scale ∘ (W x + scale · B A x) + bias`, where the bias is the adapter's
/// [`merged_bias`](Adapter::merged_bias).
pub struct JointForm {
    /// The low-rank update of the layer's own weight.
    pub update: Option<LowRank>,
    /// (out) factors on the outputs in float32, which may require a gradient; `None`: 1.
    pub output_scale: Option<Tensor>,
}

/// The active adapter of a model, and whether dropout is on; shared by all its layers.
#[derive(Default)]
pub struct AdapterSwitches {
    /// Number of the active adapter; `None`: the bare base.
    pub active: Cell<Option<usize>>,
    /// The rows of each adapter, if they differ in this decoding step. Rows in no group are the bare base's.
    pub groups: RefCell<Option<Rc<[RowGroup]>>>,
    /// True while the model is trained: dropout is on.
    pub train: Cell<bool>,
    /// The factors of low-rank updates, cast for products on CUDA.
    pub casts: FactorCasts,
}

/// The adapters attached to one layer, with their numbers in the model.
pub struct LayerAdapters {
    pub(super) switches: Rc<AdapterSwitches>,
    pub(super) list: Vec<(usize, Box<dyn Adapter>)>,
}

impl LayerAdapters {
    /// Returns this layer's part of the active adapter; `None` if none is active or it does not adapt this layer.
    ///
    /// # Panics
    /// If rows have different adapters: see [`LayerAdapters::groups`].
    pub fn active(&self) -> Option<&dyn Adapter> {
        assert!(self.switches.groups.borrow().is_none(), "a layer that cannot be computed by several adapters");
        self.by_id(self.switches.active.get()?)
    }

    /// Returns the rows of each adapter; `None` if all rows have the active one.
    pub(super) fn groups(&self) -> Option<Rc<[RowGroup]>> {
        self.switches.groups.borrow().clone()
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
    /// The matrix (out, in) that the weight was quantised from, if that happened while the model was loaded.
    pub unquantised: Option<&'a Tensor>,
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
    /// Trained, as factors or differences of single features: like norms and biases, without weight decay.
    TrainedScale,
    /// Kept unchanged and saved with the adapter.
    Frozen,
    /// Kept unchanged and not saved, because it is computed from the settings.
    Constant,
}

/// Callback that registers an adapter's parameter under its name within the module, and returns the tensor to compute
/// with.
pub type RegisterParam<'a> = dyn FnMut(&str, Tensor, ParamRole) -> Tensor + 'a;

/// Attaches adapters to layers while a model is being built.
pub trait AdapterPlan {
    /// Returns the adapter for this layer, or `None` if it gets none. Parameters of the adapter are registered with
    /// `add`.
    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>>;

    /// Returns the virtual tokens that the adapter puts before every sequence, or `None`. `embedding` (V, D) is the
    /// frozen table of tokens. Parameters are registered with `add` under their full names.
    fn virtual_tokens(
        &self,
        _model: ModelSizes,
        _embedding: &Weight,
        _add: &mut RegisterParam,
    ) -> Result<Option<VirtualTokens>> {
        Ok(None)
    }

    /// Returns true if the weight of this module is trained in full: it is then never quantised.
    fn trains_in_full(&self, _name: &str, _layer: LayerKind) -> bool {
        false
    }

    /// Called after all layers have been offered; an error if the rules name a module that does not exist.
    fn check(&self) -> Result<()>;

    /// Called after `check`: registers the parameters that several layers share, by their names in the adapter's file.
    fn register_shared(&self, _add: &mut RegisterParam) -> Result<()> {
        Ok(())
    }

    /// Called, before any layer is offered, for a model of which only the shapes matter: initial values that would have
    /// to be computed from the base's weights are then left out.
    fn skip_initial_values(&mut self) {}
}
