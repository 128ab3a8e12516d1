//! Builds a model's layers from weights.
//!
//! A family asks a [`ModuleScope`] for layers by name and shape. The builder loads or samples their weights, offers
//! each layer to the planned adapters, and records every parameter, so that family files contain nothing about adapters
//! or files.

use super::adapter::{AdapterPlan, AdapterSite, AdapterSwitches, LayerAdapters, ParamRole};
use super::embedding::Embedding;
use super::initial::InitialWeights;
use super::layer_norm::LayerNorm;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::params::{LayerKind, Param, ParamStore, QuantisedParam};
use super::quantised::{Quantisation, QuantisedWeight};
use super::virtual_tokens::{ModelSizes, VirtualTokens};
use super::weight::{Dense, Weight, cast};
use super::weights::{QuantisedEntry, Weights};
use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Div;
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
    /// How the frozen weights of linear layers are quantised, if they are.
    quantise: Option<Quantisation>,
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

    /// Quantises the frozen weights of linear layers, one by one as they are read.
    pub fn quantise(self, quantise: Option<Quantisation>) -> Self {
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

/// A parameter as it was read or sampled.
struct FoundTensor {
    /// Its full name.
    name: String,
    /// The values as they are in the file.
    tensor: Tensor,
    /// True if they are stored as (in, out).
    transposed: bool,
}

/// Returns a transposed view of a matrix; the view's gradient reaches the matrix.
fn transposed_view(t: &Tensor) -> Tensor {
    tch::with_grad(|| t.tr())
}

/// A position in the tree of modules, from which layers are built: `&scope / "self_attn" / "q_proj"`.
#[derive(Clone)]
pub struct ModuleScope<'b> {
    builder: &'b ModelBuilder<'b>,
    path: String,
    std_factor: f64,
}

impl<'b, T: Display> Div<T> for &ModuleScope<'b> {
    type Output = ModuleScope<'b>;
    fn div(self, name: T) -> ModuleScope<'b> {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        ModuleScope { builder: self.builder, path, std_factor: self.std_factor }
    }
}

impl<'b, T: Display> Div<T> for ModuleScope<'b> {
    type Output = ModuleScope<'b>;
    fn div(self, name: T) -> ModuleScope<'b> {
        &self / name
    }
}

impl ModuleScope<'_> {
    /// Multiplies the standard deviation of random weights below this position by `factor`.
    pub fn scale_std(self, factor: f64) -> Self {
        ModuleScope { std_factor: factor, ..self }
    }

    /// Builds a linear layer with `weight` (out, in) and, if `bias` is true, `bias` (out).
    pub fn linear(&self, inputs: i64, outputs: i64, bias: bool) -> Linear {
        self.linear_layer(LayerKind::Linear, inputs, outputs, bias)
    }

    /// Builds an output head with its own weight.
    pub fn output_head(&self, inputs: i64, outputs: i64) -> Linear {
        match self.builder.headless.get() {
            true => self.empty_head(inputs),
            false => self.linear_layer(LayerKind::Head, inputs, outputs, false),
        }
    }

    fn empty_head(&self, inputs: i64) -> Linear {
        self.builder.used.borrow_mut().insert((self / "weight").path);
        let weight = Tensor::zeros([0, inputs], (self.builder.kind, self.builder.device)).into();
        let adapters = LayerAdapters { switches: self.builder.switches.clone(), list: Vec::new() };
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    /// Builds the scalar head (1, D) of a reward or value model. If the checkpoint has none, its weight starts at
    /// zero, so that every score is 0 until it is trained.
    pub fn score_head(&self, inputs: i64) -> Linear {
        let zeros = Tensor::zeros([1, inputs], (Kind::Float, Device::Cpu));
        let weight = self.param_or_default("weight", LayerKind::Score, &[1, inputs], Some(zeros)).into();
        let adapters = self.attach(LayerKind::Score, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    /// Builds an output head that shares the embedding's weight.
    pub fn tied_head(&self, embedding: &Embedding) -> Linear {
        if self.builder.headless.get() {
            return self.empty_head(embedding.weight.shape()[1]);
        }
        let weight = embedding.weight.shallow_clone();
        let adapters = self.attach(LayerKind::Head, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    fn linear_layer(&self, layer: LayerKind, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let (weight, unquantised) = self.linear_weight(layer, &[outputs, inputs]);
        let bias = bias.then(|| self.param("bias", layer, &[outputs]));
        let adapters = self.attach_to(layer, &weight, unquantised.as_ref(), bias.as_ref());
        Linear { dense: Dense { weight, bias }, adapters }
    }

    /// Builds an embedding of `count` tokens.
    pub fn embedding(&self, count: i64, width: i64) -> Embedding {
        self.table(LayerKind::Embedding, count, width)
    }

    /// Builds an embedding of `count` positions.
    pub fn positions(&self, count: i64, width: i64) -> Embedding {
        self.table(LayerKind::Positions, count, width)
    }

    fn table(&self, layer: LayerKind, count: i64, width: i64) -> Embedding {
        let shape = [count, width];
        let weight = match self.stored_quantised("weight") {
            Some(matrix) => self.quantised_weight("weight", matrix, layer, &shape, self.trained_in_full(layer)),
            None => self.param("weight", layer, &shape).into(),
        };
        let adapters = self.attach(layer, &weight, None);
        Embedding { weight, adapters, kind: self.builder.kind }
    }

    /// Builds a root-mean-square norm with `weight` (width).
    pub fn rms_norm(&self, width: i64, eps: f64) -> RmsNorm {
        let weight = self.param("weight", LayerKind::Norm, &[width]);
        let adapters = self.attach(LayerKind::Norm, &weight.shallow_clone().into(), None);
        RmsNorm { weight, adapters, eps }
    }

    /// Builds a layer norm with `weight` and `bias` (width).
    pub fn layer_norm(&self, width: i64, eps: f64) -> LayerNorm {
        let weight = self.param("weight", LayerKind::Norm, &[width]);
        let bias = self.param("bias", LayerKind::Norm, &[width]);
        let adapters = self.attach(LayerKind::Norm, &weight.shallow_clone().into(), Some(&bias));
        LayerNorm { weight, bias, adapters, eps }
    }

    /// Returns a parameter in the `shape` in which it is used.
    fn param(&self, name: &str, layer: LayerKind, shape: &[i64]) -> Tensor {
        self.param_or_default(name, layer, shape, None)
    }

    /// Returns the weight of a linear layer: quantised if the builder does that and no adapter trains it in full. With it
    /// comes the matrix that it was quantised from.
    fn linear_weight(&self, layer: LayerKind, shape: &[i64]) -> (Weight, Option<Tensor>) {
        let (b, whole) = (self.builder, self.trained_in_full(layer));
        let possible = layer == LayerKind::Linear && b.trained.is_none() && !whole;
        if let Some(matrix) = self.stored_quantised("weight") {
            return (self.quantised_weight("weight", matrix, layer, shape, whole), None);
        }
        let found = self.find("weight", layer, shape, None);
        let Some(format) = b.quantise.filter(|_| possible) else {
            let quantised = if possible { QuantisedParam::Possible } else { QuantisedParam::Never };
            return (self.register(found, layer, quantised).into(), None);
        };
        let matrix = if found.transposed { found.tensor.tr() } else { found.tensor.shallow_clone() };
        match QuantisedWeight::quantise(&matrix, format, b.device) {
            Ok(weight) => (self.add_quantised(found.name, found.transposed, layer, weight), Some(matrix)),
            Err(e) => {
                b.error.borrow_mut().get_or_insert(e.context(format!("{}: `{}`", b.origin(), found.name)));
                (found.tensor.into(), None)
            }
        }
    }

    /// Returns true if an adapter trains this module in full.
    fn trained_in_full(&self, layer: LayerKind) -> bool {
        self.builder.adapters.iter().any(|adapter| adapter.trains_in_full(&self.path, layer))
    }

    /// Records a quantised weight and returns it.
    fn add_quantised(&self, name: String, transposed: bool, layer: LayerKind, weight: QuantisedWeight) -> Weight {
        let (tensor, quantised) = (weight.tensors()[0].shallow_clone(), QuantisedParam::Done(weight.clone()));
        let (adapter, scale) = (None, false);
        let param = Param { name, tensor, quantised, layer, adapter, transposed, scale };
        self.builder.store.borrow_mut().add(param);
        Weight::Quantised(weight)
    }

    /// Returns a matrix that the checkpoint contains quantised.
    fn stored_quantised(&self, name: &str) -> Option<Rc<dyn QuantisedEntry>> {
        match self.builder.source {
            WeightSource::Disk(weights) => weights.quantised(&(self / name).path).cloned(),
            WeightSource::Random(_) => None,
        }
    }

    /// Reads a weight that the checkpoint contains quantised. It cannot be trained in full (`whole`).
    fn quantised_weight(
        &self,
        name: &str,
        matrix: Rc<dyn QuantisedEntry>,
        layer: LayerKind,
        shape: &[i64],
        whole: bool,
    ) -> Weight {
        let (b, full) = (self.builder, (self / name).path);
        b.used.borrow_mut().insert(full.clone());
        let placeholder = || Tensor::zeros([1, 1], (b.kind, Device::Cpu)).into();
        if matrix.shape() != shape {
            b.problems.borrow_mut().push(format!("`{full}` has shape {:?}, expected {shape:?}", matrix.shape()));
            return placeholder();
        }
        let trained = whole || b.trained.as_ref().is_some_and(|trained| trained(&full, layer));
        let read = match trained {
            true => Err(Error::user("this weight is stored quantised and cannot be trained")
                .hint("train an adapter over it, or use the model in its original number format")),
            false => matrix.read(b.device).and_then(|weight| match layer {
                LayerKind::Embedding | LayerKind::Positions if !weight.has_whole_rows() => {
                    Err(Error::user(format!("rows of a table in {} cannot be looked up", weight.describe()))
                        .hint("use a model whose embeddings are in another format"))
                }
                _ => Ok(weight),
            }),
        };
        match read {
            Ok(weight) => {
                let transposed = b.transposed(&full);
                self.add_quantised(full, transposed, layer, weight)
            }
            Err(e) => {
                b.error.borrow_mut().get_or_insert(e.context(format!("{}: `{full}`", b.origin())));
                placeholder()
            }
        }
    }

    /// Does the same as `param`, with the value `first` if the checkpoint lacks the tensor.
    fn param_or_default(&self, name: &str, layer: LayerKind, shape: &[i64], first: Option<Tensor>) -> Tensor {
        self.register(self.find(name, layer, shape, first), layer, QuantisedParam::Never)
    }

    /// Reads or samples a parameter, which is used in this `shape`; `first` is its value if the checkpoint lacks it.
    fn find(&self, name: &str, layer: LayerKind, shape: &[i64], first: Option<Tensor>) -> FoundTensor {
        let b = self.builder;
        let full = (self / name).path;
        let transposed = b.transposed(&full);
        let shape: Vec<i64> = if transposed { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        let found = match b.source {
            // A mapped page that was read counts as the process's memory; what is quantised needs it only once.
            WeightSource::Disk(weights) if b.read || b.quantise.is_some() => {
                weights.read(&full).transpose().map(|t| t.or(first))
            }
            WeightSource::Disk(weights) => Ok(weights.get(&full).or(first)),
            WeightSource::Random(_) if first.is_some() => Ok(first),
            WeightSource::Random(initial) => Ok(Some(initial.sample(&full, layer, &shape, self.std_factor))),
        };
        b.used.borrow_mut().insert(full.clone());
        let tensor = match found {
            Ok(Some(t)) if t.size() == shape && t.is_floating_point() => t,
            other => {
                b.problems.borrow_mut().push(match other {
                    Err(e) => format!("`{full}` could not be read: {e}"),
                    Ok(None) => format!("`{full}` is missing, expected shape {shape:?}"),
                    Ok(Some(t)) if t.size() != shape => {
                        format!("`{full}` has shape {:?}, expected {shape:?}", t.size())
                    }
                    Ok(Some(t)) => format!("`{full}` has dtype {:?}, expected floating-point numbers", t.kind()),
                });
                // A small placeholder, because `finish` will fail anyway and the expected shape may not fit into
                // memory.
                Tensor::zeros([1, 1], (b.kind, Device::Cpu))
            }
        };
        FoundTensor { name: full, tensor, transposed }
    }

    /// Moves a parameter to the device in the dtype that it is held in, and records it. Returns it as it is used.
    fn register(&self, found: FoundTensor, layer: LayerKind, quantised: QuantisedParam) -> Tensor {
        let (b, FoundTensor { name, tensor, transposed }) = (self.builder, found);
        let tensor = if b.trained.as_ref().is_some_and(|trained| trained(&name, layer)) {
            tensor.to_device(b.device).to_kind(Kind::Float).copy().set_requires_grad(true)
        } else if tensor.dim() >= 2 && layer != LayerKind::Score && (b.keeps_dtype)(tensor.kind()) {
            tensor.to_device(b.device)
        } else {
            cast(&tensor.to_device(b.device), b.kind)
        };
        let kept = tensor.shallow_clone();
        let (adapter, scale) = (None, false);
        b.store.borrow_mut().add(Param { name, tensor: kept, quantised, layer, adapter, transposed, scale });
        if transposed { transposed_view(&tensor) } else { tensor }
    }

    fn attach(&self, layer: LayerKind, weight: &Weight, bias: Option<&Tensor>) -> LayerAdapters {
        self.attach_to(layer, weight, None, bias)
    }

    fn attach_to(
        &self,
        layer: LayerKind,
        weight: &Weight,
        unquantised: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> LayerAdapters {
        let b = self.builder;
        let tied = b.tied.get() && matches!(layer, LayerKind::Head | LayerKind::Embedding);
        let site = AdapterSite { name: &self.path, layer, weight, unquantised, bias, tied };
        let mut list = Vec::new();
        for (id, adapter) in b.adapters.iter().enumerate() {
            let mut add = |name: &str, t: Tensor, role| b.register(id, layer, format!("{}.{name}", self.path), t, role);
            match adapter.attach(&site, &mut add) {
                Ok(Some(a)) => list.push((id, a)),
                Ok(None) => {}
                Err(e) => {
                    b.error.borrow_mut().get_or_insert(e);
                }
            }
        }
        LayerAdapters { switches: b.switches.clone(), list }
    }
}
