//! Attaches an adapter of any kind to the layers that its rules select, while a model is built.

use super::base_layer::{BaseWeights, OverOwnWeight, named};
use super::kind::{AdapterKind, HEAD};
use super::saved_module;
use super::targets::{ModuleAdaptation, ModuleSelection};
use crate::error::{Error, Result};
use crate::nn::{Adapter, AdapterPlan, AdapterSite, LayerKind, ParamRole, RegisterParam};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// How a kind of adapter attaches to one layer.
pub trait AdaptLayer {
    /// Registers the adapter's parameters for one layer that its rules select, and returns the adapter. Fails for layers
    /// that the kind cannot adapt.
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>>;

    /// Returns true if a layer that the rules select is adapted. Only usual targets, which a recipe does not name, may
    /// select more layers than a kind can adapt.
    fn adapts(&self, _site: &AdapterSite) -> bool {
        true
    }

    /// Registers the parameters that several layers share. Called after `check`.
    fn register_shared(&self, _add: &mut RegisterParam) -> Result<()> {
        Ok(())
    }

    /// Returns the adapter for a layer that the rules do not select, if the kind's own settings do.
    fn adapt_unselected(&self, _layer: &mut AdaptedLayer) -> Result<Option<Box<dyn Adapter>>> {
        Ok(None)
    }

    /// Called after all layers have been offered. Fails if settings of the kind's own selected nothing.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A layer that is to be adapted, and what the adapter may ask for.
pub struct AdaptedLayer<'a, 'r> {
    /// The layer.
    pub site: &'a AdapterSite<'a>,
    add: &'a mut RegisterParam<'r>,
    plan: &'a ModulePlan,
    /// The weight that the adapter computes with instead of the layer's.
    beneath: Option<Tensor>,
}

impl<'a, 'r> AdaptedLayer<'a, 'r> {
    fn new(site: &'a AdapterSite<'a>, add: &'a mut RegisterParam<'r>, plan: &'a ModulePlan) -> Self {
        Self { site, add, plan, beneath: None }
    }

    /// Returns the module's name in the checkpoint.
    pub fn name(&self) -> &str {
        self.site.name
    }

    /// Returns true for tables of tokens and positions.
    pub fn is_table(&self) -> bool {
        matches!(self.site.layer, LayerKind::Embedding | LayerKind::Table)
    }

    /// Returns the shape of the layer's matrix: [out, in], or [V, D] for tables.
    pub fn matrix(&self) -> Result<[i64; 2]> {
        let shape = self.site.weight.shape();
        <[i64; 2]>::try_from(shape.as_slice()).map_err(|_| {
            Error::bug(format!("adapter on `{}`: a weight of shape {shape:?} is not a matrix", self.site.name))
        })
    }

    /// Registers a trained parameter under its name within the module and returns the tensor to compute with.
    pub fn trained(&mut self, name: &str, first: Tensor) -> Tensor {
        (self.add)(name, first, ParamRole::Trained)
    }

    /// Registers a trained vector of factors or the like under its name within the module, whatever its shape, and returns
    /// the tensor to compute with. Like norms and biases, it is not subject to weight decay.
    pub fn trained_scale(&mut self, name: &str, first: Tensor) -> Tensor {
        (self.add)(name, first, ParamRole::TrainedScale)
    }

    /// Returns a trained copy of the layer's weight and bias in place of them; the names of its parameters begin with
    /// `prefix`.
    pub fn trained_copy(&mut self, prefix: &str) -> Box<dyn Adapter> {
        saved_module::attach_as(self.site, prefix, self.add)
    }

    /// Registers a parameter that is saved with the adapter and not trained, and returns the tensor to compute with.
    pub fn frozen(&mut self, name: &str, value: Tensor) -> Tensor {
        (self.add)(name, value, ParamRole::Frozen)
    }

    /// Returns the base weight that the adapter's file contains for this layer, if it differs from the layer's. It is
    /// registered, so that it is saved again; see [`BaseWeights::own_weight`].
    pub fn own_weight(&mut self) -> Result<Option<Tensor>> {
        self.plan.base_weights.own_weight(self.site, self.plan.origin.as_deref(), self.add)
    }

    /// Returns true if the settings are those of an adapter from disk.
    pub fn is_from_file(&self) -> bool {
        self.plan.origin.is_some()
    }

    /// Returns the shape of the matrix of a linear layer or of an output head: [out, in]. The adapter of a head is put over
    /// the base weight in its file. Fails for other layers; `title` is that of the kind.
    pub fn linear_matrix(&mut self, title: &str) -> Result<[i64; 2]> {
        match self.site.layer {
            LayerKind::Linear => self.matrix(),
            LayerKind::Head => self.vocabulary_matrix(),
            _ => Err(self.refusal(
                &format!("{title} adapts linear layers only"),
                "name such layers in targets, or train this module in full with modules_to_save",
            )),
        }
    }

    /// Returns the shape of the matrix of an embedding or output head: [V, D]. The adapter that `adapt` returns is put over
    /// the base weight in its file, if that differs from the layer's.
    pub fn vocabulary_matrix(&mut self) -> Result<[i64; 2]> {
        self.beneath = self.own_weight()?;
        self.matrix()
    }

    /// Returns true if initial values are used: they are not for an adapter whose tensors are read from disk, nor for a
    /// model of which only the shapes matter. What is costly to compute from the base's weight is then left out.
    pub fn uses_initial_values(&self) -> bool {
        self.plan.initial_values
    }

    /// Returns the error for a layer that the kind cannot adapt, with the reason and the next step.
    pub fn refusal(&self, why: &str, hint: &str) -> Error {
        self.plan.refusal(self.site, why, hint)
    }
}

/// Attaches adapters by the rules of a recipe or of an adapter_config.json.
pub struct ModulePlan {
    layers: Box<dyn AdaptLayer>,
    selection: ModuleSelection,
    /// The adapter_config.json that the rules were read from; `None`: a recipe.
    origin: Option<PathBuf>,
    base_weights: BaseWeights,
    /// See [`AdaptedLayer::uses_initial_values`].
    initial_values: bool,
    /// True if an embedding and an output head that share a weight are adapted as one.
    tie: bool,
    /// True if one of the two may get a weight of its own.
    separates: bool,
    /// The adapter of such a head, once its embedding was adapted.
    tied_head: RefCell<TiedHead>,
}

/// What is known of an output head that shares the embedding's weight.
enum TiedHead {
    /// No embedding that shares its weight with a head was met.
    Unknown,
    /// The embedding is not adapted.
    Unadapted,
    /// The embedding is adapted; the adapter of the head, until it is attached.
    Adapted(Option<Box<dyn Adapter>>),
}

impl ModulePlan {
    /// Plans an adapter by a recipe's rules: every module that they name must exist.
    pub fn new<K: AdapterKind + ?Sized>(kind: &K) -> Result<Self> {
        let (layers, selection) = (kind.layers()?, kind.selection()?);
        Ok(Self {
            layers,
            selection,
            origin: None,
            base_weights: BaseWeights::default(),
            initial_values: true,
            tie: kind.asks_to_tie(),
            separates: false,
            tied_head: RefCell::new(TiedHead::Unknown),
        })
    }

    /// Plans an adapter by the adapter_config.json at `origin`. It may name modules that the model lacks, because its
    /// tensors say which modules are adapted.
    pub fn of_file<K: AdapterKind + ?Sized>(kind: &K, origin: &Path) -> Result<Self> {
        let plan = Self::new(kind).map_err(|e| e.context(origin.display()))?;
        Ok(Self { origin: Some(origin.into()), initial_values: false, ..plan })
    }

    /// Adds the base weights that an adapter's tensors contain; all its tensors replace initial values later.
    pub fn with_base_weights(self, tensors: &BTreeMap<String, Tensor>) -> Self {
        Self { base_weights: BaseWeights::of(tensors), initial_values: false, ..self }
    }

    /// Lets an output head have another weight than the embedding that it shares one with: for a sum of adapters in memory,
    /// which a merged model is compared with.
    pub fn separating_head(self) -> Self {
        Self { separates: true, ..self }
    }

    fn refusal(&self, site: &AdapterSite, why: &str, hint: &str) -> Error {
        named(self.origin.as_deref(), Error::user(format!("adapter on `{}`: {why}", site.name)).hint(hint))
    }
}

impl AdapterPlan for ModulePlan {
    fn check(&self) -> Result<()> {
        let checked = self.selection.check(self.origin.is_none()).and_then(|()| self.layers.check());
        let checked = checked.and_then(|()| self.check_tie());
        checked.map_err(|e| named(self.origin.as_deref(), e))
    }

    fn register_shared(&self, add: &mut RegisterParam) -> Result<()> {
        self.layers.register_shared(add)
    }

    fn skip_initial_values(&mut self) {
        self.initial_values = false;
    }

    fn trains_in_full(&self, name: &str, layer: LayerKind) -> bool {
        matches!(self.selection.adaptation(name, layer), Some(ModuleAdaptation::Save))
    }

    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        if self.tie && site.tied {
            return self.attach_tied(site, add);
        }
        self.attach_as(self.selection.adaptation(site.name, site.layer), site, add)
    }
}

impl ModulePlan {
    /// Attaches to a layer that is to be trained in this way.
    fn attach_as(
        &self,
        how: Option<ModuleAdaptation>,
        site: &AdapterSite,
        add: &mut RegisterParam,
    ) -> Result<Option<Box<dyn Adapter>>> {
        Ok(match how {
            None => self.layers.adapt_unselected(&mut AdaptedLayer::new(site, add, self))?,
            Some(ModuleAdaptation::Save) if site.tied && !self.tie && !self.separates => {
                return Err(self.refusal(
                    site,
                    "embedding and output head share one weight in this model; training one of them in full would separate them",
                    "set `tie: true` of adapter.lora to train both as one; or name it in targets, for a low-rank update of it alone, and leave it out of modules_to_save",
                ));
            }
            Some(ModuleAdaptation::Save) => Some(saved_module::attach(site, add)),
            Some(ModuleAdaptation::Adapted) if !self.layers.adapts(site) => None,
            Some(ModuleAdaptation::Adapted) => {
                let mut layer = AdaptedLayer::new(site, add, self);
                let adapter = self.layers.adapt(&mut layer)?;
                Some(match layer.beneath {
                    Some(weight) => Box::new(OverOwnWeight { adapter, weight: weight.into() }),
                    None => adapter,
                })
            }
        })
    }

    /// Attaches to an embedding and an output head that share a weight, as one: whichever of the two the rules name, the
    /// parameters are the embedding's, and the head gets an adapter that computes with them.
    fn attach_tied(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        if site.layer == LayerKind::Head {
            return match &mut *self.tied_head.borrow_mut() {
                TiedHead::Adapted(adapter) => Ok(adapter.take()),
                _ => self.layers.adapt_unselected(&mut AdaptedLayer::new(site, add, self)),
            };
        }
        let ways = [(site.name, site.layer), (HEAD, LayerKind::Head)].map(|(n, l)| self.selection.adaptation(n, l));
        let [embedding, head] = ways;
        let how = match (embedding, head) {
            (Some(ModuleAdaptation::Save), _) | (_, Some(ModuleAdaptation::Save)) => Some(ModuleAdaptation::Save),
            (embedding, head) => embedding.or(head),
        };
        let adapted = how.is_some();
        let adapter = self.attach_as(how, site, add)?;
        *self.tied_head.borrow_mut() = match (&adapter, adapted) {
            (Some(adapter), true) => {
                let head = adapter.for_tied_head().ok_or_else(|| {
                    let hint = "remove `tie`, or leave the embedding out of targets";
                    self.refusal(site, "an embedding that is adapted in this way cannot be tied to the head", hint)
                })?;
                TiedHead::Adapted(Some(head))
            }
            _ => TiedHead::Unadapted,
        };
        Ok(adapter)
    }

    /// Fails if a recipe asks to tie what is not tied or not adapted. PEFT ignores the setting then, so a file may have it.
    fn check_tie(&self) -> Result<()> {
        let why = match &*self.tied_head.borrow() {
            _ if !self.tie || self.origin.is_some() => return Ok(()),
            TiedHead::Adapted(_) => return Ok(()),
            TiedHead::Unknown => "embedding and output head have weights of their own in this model",
            TiedHead::Unadapted => "neither embedding nor output head is among targets and modules_to_save",
        };
        Err(Error::user(format!("adapter.lora.tie has no effect: {why}")).hint("remove it"))
    }
}
