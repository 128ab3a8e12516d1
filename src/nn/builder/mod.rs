//! Builds a model's layers from weights.
//!
//! A family asks a [`ModuleScope`] for layers by name and shape. The builder loads or samples their weights, offers
//! each layer to the planned adapters, and records every parameter, so that family files contain nothing about adapters
//! or files. mod: what a building collects. scope: the tree of modules and its layers. parameter: their parameters.

mod parameter;
mod scope;

pub use scope::ModuleScope;

use super::adapter::{AdapterPlan, AdapterSwitches, ParamRole};
use super::initial::InitialWeights;
use super::params::{LayerKind, Param, ParamStore, QuantisedParam};
use super::quantised::BaseQuantisation;
use super::virtual_tokens::{ModelSizes, VirtualTokens};
use super::weight::Weight;
use super::weights::Weights;
use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Where the values of the base's parameters come from.
pub enum WeightSource<'w> {
    /// A checkpoint on disk.
    Disk(&'w Weights),
    /// Sampled at random: an untrained model.
    Random(&'w InitialWeights),
}

/// Returns whether a parameter of the base is trained, by its name and the kind of its layer.
pub type SelectTrained = Box<dyn Fn(&str, LayerKind) -> bool>;

/// Builds a model's layers from weights. Problems with tensors are collected, so that one error can list them all.
pub struct ModelBuilder<'w> {
    source: WeightSource<'w>,
    device: Device,
    kind: Kind,
    /// Decides for which dtypes a frozen matrix is kept in its own dtype instead of being converted to `kind`.
    keeps_dtype: Box<dyn Fn(Kind) -> bool>,
    /// Whether frozen weights are read into allocated memory. Otherwise those that need no conversion stay mapped.
    read: bool,
    /// Whether numbers of matrices that are stored quantised may be left out.
    outline: bool,
    /// How the frozen weights are quantised, if they are.
    quantise: Option<BaseQuantisation>,
    /// Decides by name and kind of layer which of the base's parameters are trained; `None`: none.
    trained: Option<SelectTrained>,
    adapters: Vec<&'w dyn AdapterPlan>,
    switches: Rc<AdapterSwitches>,
    store: RefCell<ParamStore>,
    problems: RefCell<Vec<String>>,
    error: RefCell<Option<Error>>,
    used: RefCell<BTreeSet<String>>,
    tied: Cell<bool>,
    headless: Cell<bool>,
}

/// What [`ModelBuilder::finish`] returns next to the layers.
pub struct BuildResult {
    /// All parameters, those of adapters included.
    pub store: ParamStore,
    /// The switches that the layers obey.
    pub switches: Rc<AdapterSwitches>,
    /// Names of tensors in the checkpoint that no layer uses.
    pub unused: Vec<String>,
}

impl<'w> ModelBuilder<'w> {
    /// Starts a model on `device` that computes in dtype `kind`. The base's own weights for which `trained` returns true
    /// are trained. `adapters` are attached in order and numbered from 0.
    pub fn new(
        source: WeightSource<'w>,
        device: Device,
        kind: Kind,
        trained: Option<SelectTrained>,
        adapters: Vec<&'w dyn AdapterPlan>,
    ) -> Self {
        Self {
            source,
            device,
            kind,
            keeps_dtype: Box::new(|_| false),
            read: false,
            outline: false,
            quantise: None,
            trained,
            adapters,
            switches: Rc::default(),
            store: RefCell::default(),
            problems: RefCell::default(),
            error: RefCell::default(),
            used: RefCell::default(),
            tied: Cell::new(false),
            headless: Cell::new(false),
        }
    }

    /// Keeps frozen matrices in their own dtype if `hold` returns true for it; layers convert them when they multiply.
    pub fn keep_dtype_if(self, hold: impl Fn(Kind) -> bool + 'static) -> Self {
        Self { keeps_dtype: Box::new(hold), ..self }
    }

    /// Sets whether frozen weights on the CPU are read into allocated memory instead of being mapped.
    pub fn read_into_memory(self, read: bool) -> Self {
        Self { read: read && self.device == Device::Cpu && self.trained.is_none(), ..self }
    }

    /// Leaves out the numbers of matrices that are stored quantised: the model is never run, only its shapes matter.
    pub fn outline(self, outline: bool) -> Self {
        Self { outline, ..self }
    }

    /// Quantises the frozen weights of linear layers, and tables of tokens and the output head if `quantise` says so, one by
    /// one as they are read.
    pub fn quantise(self, quantise: Option<BaseQuantisation>) -> Self {
        Self { quantise: quantise.filter(|_| self.trained.is_none()), ..self }
    }

    /// Returns the root of the module tree.
    pub fn root(&self) -> ModuleScope<'_> {
        ModuleScope { builder: self, path: String::new(), std_factor: 1.0 }
    }

    /// Returns the device of the layers.
    pub fn device(&self) -> Device {
        self.device
    }

    fn origin(&self) -> String {
        match self.source {
            WeightSource::Disk(weights) => weights.origin().display().to_string(),
            WeightSource::Random(_) => "a new model with random weights".into(),
        }
    }

    fn transposed(&self, name: &str) -> bool {
        match self.source {
            WeightSource::Disk(weights) => weights.transposed(name),
            WeightSource::Random(initial) => initial.transposed(name),
        }
    }

    /// Registers a parameter of adapter `id`, for a layer of kind `layer`. Returns the tensor to compute with.
    fn register(&self, id: usize, layer: LayerKind, name: String, t: Tensor, role: ParamRole) -> Tensor {
        let transposed = self.transposed(&name); // a copy of the base's weight is stored in the base's layout
        let t = if transposed { t.tr().contiguous() } else { t };
        let t = t.to_device(self.device);
        let t = match role {
            ParamRole::Trained | ParamRole::TrainedScale => t.to_kind(Kind::Float).set_requires_grad(true),
            ParamRole::Frozen => t,
            ParamRole::Constant => return t,
        };
        let (tensor, scale) = (t.shallow_clone(), role == ParamRole::TrainedScale);
        let (quantised, adapter) = (QuantisedParam::Never, Some(id));
        self.store.borrow_mut().add(Param { name, tensor, quantised, layer, adapter, transposed, scale });
        if transposed { transposed_view(&t) } else { t }
    }

    /// Declares that the output head shares the embedding's weight.
    pub fn tie_head(&self) {
        self.tied.set(true);
    }

    /// Declares that the model has no output head: families then get an empty one, and a head on disk is not read.
    pub fn omit_head(&self) {
        self.headless.set(true);
    }

    /// Lets the adapters add virtual tokens to a model of these sizes, whose layers are built. `embedding` is the name of
    /// the table of tokens. Returns those of each adapter, in their order.
    pub fn attach_virtual_tokens(&self, sizes: ModelSizes, embedding: &str) -> Result<Vec<Option<VirtualTokens>>> {
        let of_param = |p: &Param| match &p.quantised {
            QuantisedParam::Done(weight) => Weight::Quantised(weight.clone()),
            _ => Weight::Dense(p.tensor.detach()),
        };
        let table = self.store.borrow().base().find(|p| p.name == embedding).map(of_param);
        // If weights are missing, `finish` says which.
        let Some(table) = table.filter(|_| self.problems.borrow().is_empty()) else {
            return Ok(self.adapters.iter().map(|_| None).collect());
        };
        let attach = |(id, adapter): (usize, &&dyn AdapterPlan)| {
            let mut add =
                |name: &str, t: Tensor, role: ParamRole| self.register(id, LayerKind::Embedding, name.into(), t, role);
            adapter.virtual_tokens(sizes, &table, &mut add)
        };
        self.adapters.iter().enumerate().map(attach).collect()
    }

    /// Ends the building. Fails if tensors were missing or had the wrong shape (the error lists up to 20), if an
    /// adapter could not be attached, or if its rules named modules that do not exist.
    pub fn finish(self) -> Result<BuildResult> {
        let problems = self.problems.take();
        if !problems.is_empty() {
            let shown = problems.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ");
            let more = problems.len().saturating_sub(20);
            let more = if more > 0 { format!("\n  … and {more} more") } else { String::new() };
            return Err(Error::user(format!(
                "{}: the weights do not fit config.json:\n  {shown}{more}",
                self.origin()
            ))
            .hint("the directory mixes two models, or the download is incomplete"));
        }
        if let Some(e) = self.error.take() {
            return Err(e);
        }
        for (id, adapter) in self.adapters.iter().enumerate() {
            adapter.check()?;
            // Parameters of several layers count as those of linear layers.
            let mut add = |name: &str, t: Tensor, role| self.register(id, LayerKind::Linear, name.into(), t, role);
            adapter.register_shared(&mut add)?;
        }
        let used = self.used.take();
        let unused = match self.source {
            WeightSource::Disk(weights) => {
                let left = weights.names().filter(|n| !used.contains(*n) && !weights.is_idle_bias(n));
                left.map(String::from).collect()
            }
            WeightSource::Random(_) => Vec::new(),
        };
        Ok(BuildResult { store: self.store.into_inner(), switches: self.switches, unused })
    }
}

/// Returns a transposed view of a matrix; the view's gradient reaches the matrix.
fn transposed_view(t: &Tensor) -> Tensor {
    tch::with_grad(|| t.tr())
}
