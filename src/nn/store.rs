//! Parameters by the checkpoint's own names, and the builder that hands out layers as a family asks for them.

use super::initial::Initial;
use super::layer_norm::LayerNorm;
use super::linear::{Adapter, Attached, Dense, Embedding, Linear, Switches, cast};
use super::norm::RmsNorm;
use super::weights::Weights;
use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Div;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// What kind of layer a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Linear,
    /// The output head; `all-linear` leaves it out.
    Head,
    Embedding,
    /// A learnt table of positions.
    Positions,
    Norm,
    /// The scalar head of a reward or value model; `all-linear` leaves it out.
    Score,
}

/// A named tensor of the model or of one of its adapters.
pub struct Param {
    /// The name it has on disk, e.g. `model.layers.0.self_attn.q_proj.weight` or `….q_proj.lora_A.weight`.
    pub name: String,
    pub tensor: Tensor,
    pub layer: Layer,
    /// Number of the adapter it belongs to; `None`: the base.
    pub adapter: Option<usize>,
    /// A linear layer's weight that is kept as it lies on disk, (in, out), and used as (out, in).
    pub transposed: bool,
}

impl Param {
    pub fn trainable(&self) -> bool {
        self.tensor.requires_grad()
    }

    /// Weight decay is for matrices; norms and biases have one dimension.
    pub fn is_matrix(&self) -> bool {
        self.tensor.dim() >= 2 && self.layer != Layer::Norm
    }
}

/// All parameters, in the order in which they were handed out.
#[derive(Default)]
pub struct ParamStore {
    params: Vec<Param>,
}

impl ParamStore {
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.params.iter()
    }

    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.trainable())
    }

    /// The base's parameters.
    pub fn base(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.adapter.is_none())
    }

    /// One adapter's parameters.
    pub fn adapter(&self, id: usize) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(move |p| p.adapter == Some(id))
    }

    /// The first tensor that holds NaN or an infinite value. Reads every number: ask when something went wrong.
    pub fn non_finite(&self) -> Option<&str> {
        let _no_grad = tch::no_grad_guard();
        let broken = |p: &&Param| p.tensor.isfinite().all().int64_value(&[]) == 0;
        self.params.iter().find(broken).map(|p| p.name.as_str())
    }

    fn add(&mut self, param: Param) {
        debug_assert!(!self.params.iter().any(|p| p.name == param.name && p.adapter == param.adapter));
        self.params.push(param);
    }
}

/// A layer as it is handed out, for those who may attach to it.
pub struct Site<'a> {
    /// The module's name in the checkpoint.
    pub name: &'a str,
    pub layer: Layer,
    /// The frozen weight: (out, in) for linear layers, (V, D) for embeddings.
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    /// The head that shares the embedding's weight, or that embedding.
    pub tied: bool,
}

/// What becomes of a parameter that an adapter registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is trained: a float32 leaf.
    Trained,
    /// It is kept as it is and saved with the adapter.
    Frozen,
}

/// Registers an adapter's parameter by its name below the module's and returns it as it is to be used.
pub type Register<'a> = dyn FnMut(&str, Tensor, Role) -> Tensor + 'a;

/// Something that attaches adapters while the model is being built.
pub trait Attach {
    /// The adapter for this layer, if it gets one; `add` takes its parameters.
    fn attach(&self, site: &Site, add: &mut Register) -> Result<Option<Box<dyn Adapter>>>;

    /// All layers were offered: an error where the rules named one that does not exist.
    fn check(&self) -> Result<()>;
}

/// Where the values of the base's parameters come from.
pub enum Source<'w> {
    Disk(&'w Weights),
    /// Drawn by chance: a model that was never trained.
    Chance(&'w Initial),
}

/// Builds layers from weights. Problems are gathered, so that one error names every one.
pub struct Builder<'w> {
    source: Source<'w>,
    device: Device,
    kind: Kind,
    /// Whether a frozen matrix of this format is held as it is, beside one of the arithmetic's own.
    hold: Box<dyn Fn(Kind) -> bool>,
    /// Whether frozen weights are read into memory of their own; otherwise they are mapped where no format is changed.
    read: bool,
    train: bool,
    adapters: Vec<&'w dyn Attach>,
    switches: Rc<Switches>,
    store: RefCell<ParamStore>,
    problems: RefCell<Vec<String>>,
    error: RefCell<Option<Error>>,
    used: RefCell<BTreeSet<String>>,
    tied: Cell<bool>,
    headless: Cell<bool>,
}

/// What a finished builder leaves behind.
pub struct Built {
    pub store: ParamStore,
    pub switches: Rc<Switches>,
    /// Names in the checkpoint that no layer asked for.
    pub unused: Vec<String>,
}

impl<'w> Builder<'w> {
    /// `train`: the base's own weights are trained; `adapters` are attached in order and numbered from 0.
    pub fn new(source: Source<'w>, device: Device, kind: Kind, train: bool, adapters: Vec<&'w dyn Attach>) -> Self {
        Self {
            source,
            device,
            kind,
            hold: Box::new(|_| false),
            read: false,
            train,
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

    /// Frozen matrices of formats for which `hold` is true stay in them; layers widen them as they multiply.
    pub fn hold(self, hold: impl Fn(Kind) -> bool + 'static) -> Self {
        Self { hold: Box::new(hold), ..self }
    }

    /// Whether frozen weights on the CPU are read into memory of their own instead of being mapped.
    pub fn read(self, read: bool) -> Self {
        Self { read: read && self.device == Device::Cpu && !self.train, ..self }
    }

    pub fn root(&self) -> Scope<'_> {
        Scope { builder: self, path: String::new(), spread: 1.0 }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    fn origin(&self) -> String {
        match self.source {
            Source::Disk(weights) => weights.origin().display().to_string(),
            Source::Chance(_) => "a model drawn by chance".into(),
        }
    }

    fn transposed(&self, name: &str) -> bool {
        match self.source {
            Source::Disk(weights) => weights.transposed(name),
            Source::Chance(initial) => initial.transposed(name),
        }
    }

    /// Says that the head shares the embedding's weight.
    pub fn tie_head(&self) {
        self.tied.set(true);
    }

    /// Says that no output head is wanted: what a family asks for is an empty one, and one on disk is not read.
    pub fn omit_head(&self) {
        self.headless.set(true);
    }

    /// All layers are handed out: missing and misshapen tensors are an error that names every one.
    pub fn finish(self) -> Result<Built> {
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
        for adapter in &self.adapters {
            adapter.check()?;
        }
        let used = self.used.take();
        let unused = match self.source {
            Source::Disk(weights) => weights.names().filter(|n| !used.contains(*n)).map(String::from).collect(),
            Source::Chance(_) => Vec::new(),
        };
        Ok(Built { store: self.store.into_inner(), switches: self.switches, unused })
    }
}

/// A matrix seen the other way round; a gradient that it receives reaches the matrix.
fn turned(t: &Tensor) -> Tensor {
    tch::with_grad(|| t.tr())
}

/// A place in the tree of modules: `&scope / "self_attn" / "q_proj"`.
#[derive(Clone)]
pub struct Scope<'b> {
    builder: &'b Builder<'b>,
    path: String,
    spread: f64,
}

impl<'b, T: Display> Div<T> for &Scope<'b> {
    type Output = Scope<'b>;
    fn div(self, name: T) -> Scope<'b> {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Scope { builder: self.builder, path, spread: self.spread }
    }
}

impl<'b, T: Display> Div<T> for Scope<'b> {
    type Output = Scope<'b>;
    fn div(self, name: T) -> Scope<'b> {
        &self / name
    }
}

impl Scope<'_> {
    /// Where weights are drawn by chance, those below here get so many times the usual standard deviation.
    pub fn spread(self, factor: f64) -> Self {
        Scope { spread: factor, ..self }
    }

    /// A linear layer `weight` (out, in), with `bias` (out) where asked.
    pub fn linear(&self, inputs: i64, outputs: i64, bias: bool) -> Linear {
        self.linear_layer(Layer::Linear, inputs, outputs, bias)
    }

    /// The output head with a weight of its own.
    pub fn head(&self, inputs: i64, outputs: i64) -> Linear {
        match self.builder.headless.get() {
            true => self.empty_head(inputs),
            false => self.linear_layer(Layer::Head, inputs, outputs, false),
        }
    }

    fn empty_head(&self, inputs: i64) -> Linear {
        self.builder.used.borrow_mut().insert((self / "weight").path);
        let weight = Tensor::zeros([0, inputs], (self.builder.kind, self.builder.device));
        let adapters = Attached { switches: self.builder.switches.clone(), list: Vec::new() };
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    /// The scalar head (1, D) of a reward or value model. A checkpoint without one begins at zero: every score is 0
    /// until it is trained.
    pub fn score(&self, inputs: i64) -> Linear {
        let zeros = Tensor::zeros([1, inputs], (Kind::Float, Device::Cpu));
        let weight = self.param_or("weight", Layer::Score, &[1, inputs], Some(zeros));
        let adapters = self.attach(Layer::Score, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    /// The output head that shares the embedding's weight.
    pub fn tied_head(&self, embedding: &Embedding) -> Linear {
        if self.builder.headless.get() {
            return self.empty_head(embedding.weight.size()[1]);
        }
        let weight = embedding.weight.shallow_clone();
        let adapters = self.attach(Layer::Head, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters }
    }

    fn linear_layer(&self, layer: Layer, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let weight = self.param("weight", layer, &[outputs, inputs]);
        let bias = bias.then(|| self.param("bias", layer, &[outputs]));
        let adapters = self.attach(layer, &weight, bias.as_ref());
        Linear { dense: Dense { weight, bias }, adapters }
    }

    /// A table of `count` vectors.
    pub fn embedding(&self, count: i64, width: i64) -> Embedding {
        self.table(Layer::Embedding, count, width)
    }

    /// A table of `count` positions.
    pub fn positions(&self, count: i64, width: i64) -> Embedding {
        self.table(Layer::Positions, count, width)
    }

    fn table(&self, layer: Layer, count: i64, width: i64) -> Embedding {
        let weight = self.param("weight", layer, &[count, width]);
        let adapters = self.attach(layer, &weight, None);
        Embedding { weight, adapters, kind: self.builder.kind }
    }

    pub fn rms_norm(&self, width: i64, eps: f64) -> RmsNorm {
        let weight = self.param("weight", Layer::Norm, &[width]);
        let adapters = self.attach(Layer::Norm, &weight, None);
        RmsNorm { weight, adapters, eps }
    }

    pub fn layer_norm(&self, width: i64, eps: f64) -> LayerNorm {
        let weight = self.param("weight", Layer::Norm, &[width]);
        let bias = self.param("bias", Layer::Norm, &[width]);
        let adapters = self.attach(Layer::Norm, &weight, Some(&bias));
        LayerNorm { weight, bias, adapters, eps }
    }

    /// The parameter in the `shape` it is used in.
    fn param(&self, name: &str, layer: Layer, shape: &[i64]) -> Tensor {
        self.param_or(name, layer, shape, None)
    }

    /// As `param`, with the value of one that the checkpoint has not.
    fn param_or(&self, name: &str, layer: Layer, shape: &[i64], first: Option<Tensor>) -> Tensor {
        let b = self.builder;
        let full = (self / name).path;
        let transposed = b.transposed(&full);
        let shape: Vec<i64> = if transposed { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        let found = match b.source {
            Source::Disk(weights) if b.read => weights.read(&full).transpose().map(|t| t.or(first)),
            Source::Disk(weights) => Ok(weights.get(&full).or(first)),
            Source::Chance(_) if first.is_some() => Ok(first),
            Source::Chance(initial) => Ok(Some(initial.draw(&full, layer, &shape, self.spread))),
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
                // A stand-in: `finish` will fail, and the expected shape may be beyond any memory.
                Tensor::zeros([1, 1], (b.kind, Device::Cpu))
            }
        };
        let tensor = if b.train {
            tensor.to_device(b.device).to_kind(Kind::Float).copy().set_requires_grad(true)
        } else if tensor.dim() >= 2 && layer != Layer::Score && (b.hold)(tensor.kind()) {
            tensor.to_device(b.device)
        } else {
            cast(&tensor.to_device(b.device), b.kind)
        };
        let kept = tensor.shallow_clone();
        b.store.borrow_mut().add(Param { name: full, tensor: kept, layer, adapter: None, transposed });
        if transposed { turned(&tensor) } else { tensor }
    }

    fn attach(&self, layer: Layer, weight: &Tensor, bias: Option<&Tensor>) -> Attached {
        let b = self.builder;
        let tied = b.tied.get() && matches!(layer, Layer::Head | Layer::Embedding);
        let site = Site { name: &self.path, layer, weight, bias, tied };
        let mut list = Vec::new();
        for (id, adapter) in b.adapters.iter().enumerate() {
            let mut add = |name: &str, t: Tensor, role: Role| {
                let name = format!("{}.{name}", self.path);
                let transposed = b.transposed(&name); // a copy of the base's own weight is kept as that one is
                let t = if transposed { t.tr().contiguous() } else { t };
                let t = match role {
                    Role::Trained => t.to_device(b.device).to_kind(Kind::Float).set_requires_grad(true),
                    Role::Frozen => t.to_device(b.device),
                };
                let tensor = t.shallow_clone();
                b.store.borrow_mut().add(Param { name, tensor, layer, adapter: Some(id), transposed });
                if transposed { turned(&t) } else { t }
            };
            match adapter.attach(&site, &mut add) {
                Ok(Some(a)) => list.push((id, a)),
                Ok(None) => {}
                Err(e) => {
                    b.error.borrow_mut().get_or_insert(e);
                }
            }
        }
        Attached { switches: b.switches.clone(), list }
    }
}
