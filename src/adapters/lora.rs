//! Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = W x + s B A dropout(x)`.
//!
//! A (R, in) and B (out, R) are float32 masters; products run in the dtype of x. `s` is alpha / R, or
//! alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

use super::spec::{LoraInit, LoraSpec};
use super::targets::{ModuleAdaptation, ModuleSelection};
use crate::error::{Error, Result};
use crate::nn::joint_linear::{self, JointLayer, LowRank};
use crate::nn::ops::embedding_rows;
use crate::nn::weight::{add_product, cast, is_decoding, product};
use crate::nn::{Adapter, AdapterPlan, AdapterSite, Dense, LayerInput, LayerKind, ParamRole, RegisterParam};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The low-rank update of one linear layer.
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
    /// The base weight that the update was trained on, if the adapter's file contains one that differs from the
    /// model's.
    own: Option<Tensor>,
    /// For decoding: the versions of A and B when they were last cast, and the casts of A and s B.
    cast: RefCell<Option<([i64; 2], Tensor, Tensor)>>,
}

impl Lora {
    /// Returns A and s B in dtype `kind`, for decoding. A decoding step is short, so they are cast again only when an
    /// optimiser step has changed them.
    fn cast(&self, kind: Kind) -> (Tensor, Tensor) {
        let _no_grad = tch::no_grad_guard();
        let now = [self.a.internal_version(), self.b.internal_version()];
        let mut kept = self.cast.borrow_mut();
        if kept.as_ref().is_none_or(|(then, a, _)| *then != now || a.kind() != kind) {
            *kept = Some((now, cast(&self.a, kind), cast(&(&self.b * self.scale), kind)));
        }
        let (_, a, b) = kept.as_ref().expect("just made");
        (a.shallow_clone(), b.shallow_clone())
    }

    /// Returns the update, times `scale`.
    fn update(&self, scale: f64) -> LowRank<'_> {
        LowRank { masters: [&self.a, &self.b], scale }
    }
}

/// Endings of tensor names in PEFT's files: the factors of an embedding's update, and the base weight below an update.
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
pub(super) const BASE_LAYER: &str = ".base_layer.weight";
/// Modules whose base weight PEFT saves together with their update.
const SAVED_BASE_MODULES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Returns the module whose update has this tensor as its factor A; `None` for other tensors of an adapter.
pub fn adapted_module(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(".lora_A.weight").or_else(|| tensor.strip_suffix(EMBEDDING_A)?.strip_suffix('.'))
}

/// Returns true if a tensor of an adapter is the factor B of an update.
pub fn second_factor(tensor: &str) -> bool {
    tensor.ends_with(".lora_B.weight") || tensor.ends_with(EMBEDDING_B)
}

/// Returns the scale of an update: alpha / R, or alpha / sqrt(R) for rsLoRA.
pub fn scale(alpha: f64, rank: i64, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let clone = |t: &Tensor| t.shallow_clone();
        let own = self.own.as_ref().map(|w| Dense { weight: clone(w).into(), bias: base.bias.as_ref().map(clone) });
        let base = own.as_ref().unwrap_or(base);
        if is_decoding() {
            let (a, b) = self.cast(x.kind());
            return add_product(base.forward(x), &product(x, &a, None), &b);
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let mask = (kept < 1.0).then(|| Tensor::empty_like(x).bernoulli_float_(kept)); // zeros and ones
        let part = JointLayer { base, update: Some(self.update(self.scale / kept)), joinable: false };
        joint_linear::products(&LayerInput::kept(x), mask.as_ref(), &[part]).remove(0)
    }

    fn low_rank(&self, train: bool) -> Option<LowRank<'_>> {
        let plain = self.own.is_none() && (!train || self.dropout == 0.0);
        plain.then(|| self.update(self.scale))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a) * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}

/// The low-rank update of an embedding: row t of `W + s (B A)^T`. It has no dropout, because its input are ids.
pub struct LoraEmbedding {
    /// (R, V)
    a: Tensor,
    /// (D, R)
    b: Tensor,
    scale: f64,
    /// The base weight that the update was trained on, if it differs from the model's, as in [`Lora`].
    own: Option<Tensor>,
}

impl Adapter for LoraEmbedding {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight.dense(base.weight.kind())), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        let low = embedding_rows(&self.a.tr(), ids); // (T, R)
        let update = low.matmul(&self.b.tr()) * self.scale; // (T, D)
        embedding_rows(self.own.as_ref().unwrap_or(weight), ids).to_kind(Kind::Float) + update
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a).tr() * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}

/// A module trained in full, bias included, as a copy of its frozen original (`modules_to_save`).
pub struct FullyTrainedModule {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Adapter for FullyTrainedModule {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        debug_assert_eq!(base.bias.is_some(), self.bias.is_some());
        let bias = self.bias.as_ref().map(|b| cast(b, x.kind()));
        product(x, &self.weight, bias.as_ref())
    }

    fn merged(&self, _weight: &Tensor) -> Tensor {
        self.weight.shallow_clone()
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        self.bias.as_ref().unwrap_or(bias).shallow_clone()
    }
}

/// Attaches LoRA to layers by the rules of a recipe or of an adapter_config.json.
pub struct LoraPlan {
    spec: LoraSpec,
    selection: ModuleSelection,
    /// The adapter_config.json that the rules were read from; `None`: a recipe.
    origin: Option<PathBuf>,
    /// Base weights in the adapter's file, by module. PEFT saves those of adapted embeddings and output heads, and
    /// replaces the model's weights by them when it loads the adapter.
    base_weights: BTreeMap<String, Tensor>,
}

impl LoraPlan {
    /// Plans an adapter by a recipe's rules: every module that they name must exist.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        Ok(Self {
            spec: spec.clone(),
            selection: ModuleSelection::new(spec)?,
            origin: None,
            base_weights: BTreeMap::new(),
        })
    }

    /// Plans an adapter by the adapter_config.json at `origin`. It may name modules that the model lacks, because its
    /// tensors say which modules are adapted.
    pub fn of_file(spec: &LoraSpec, origin: &Path) -> Result<Self> {
        let selection = ModuleSelection::new(spec).map_err(|e| e.context(origin.display()))?;
        Ok(Self { spec: spec.clone(), selection, origin: Some(origin.into()), base_weights: BTreeMap::new() })
    }

    /// Adds the base weights that an adapter's tensors contain.
    pub fn with_base_weights(mut self, tensors: &BTreeMap<String, Tensor>) -> Self {
        let base =
            |(name, t): (&String, &Tensor)| Some((name.strip_suffix(BASE_LAYER)?.to_string(), t.shallow_clone()));
        self.base_weights = tensors.iter().filter_map(base).collect();
        self
    }

    /// Returns the adapter file's base weight if it differs from the layer's and is used in its place. It is
    /// registered, so that it is saved again; if it is equal, it takes no extra memory. For a new adapter the layer's
    /// own weight is registered for the modules for which PEFT saves it.
    fn own_base_weight(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Tensor>> {
        let Some(base) = self.base_weights.get(site.name) else {
            if self.origin.is_none() && SAVED_BASE_MODULES.contains(&site.name.rsplit('.').next().unwrap_or_default()) {
                let _ = add(&BASE_LAYER[1..], site.weight.dense(site.weight.kind()), ParamRole::Frozen);
            }
            return Ok(None);
        };
        if base.size() != site.weight.shape() {
            return Err(self.name_origin(
                Error::user(format!(
                    "adapter on `{}`: its file contains a base layer of shape {:?}, but the model's has {:?}",
                    site.name,
                    base.size(),
                    site.weight.shape()
                ))
                .hint("it was trained on a base with another vocabulary: use that one"),
            ));
        }
        let own = site.weight.dense(site.weight.kind());
        let base = cast(&base.to_device(own.device()), own.kind());
        let equal = base.equal(&own);
        if site.tied && !equal {
            return Err(self.name_origin(
                Error::user(format!(
                    "adapter on `{}`: its file contains a base layer that differs from the model's, which embedding and output head share",
                    site.name
                ))
                .hint("was it trained on another base? Use that one"),
            ));
        }
        let base = if equal { own } else { base };
        let base = add(&BASE_LAYER[1..], base, ParamRole::Frozen);
        Ok((!equal).then_some(base))
    }

    fn name_origin(&self, e: Error) -> Error {
        match &self.origin {
            Some(file) => e.context(file.display()),
            None => e,
        }
    }
}

/// Returns the error for a layer that should have a matrix and has none.
fn not_a_matrix(site: &AdapterSite) -> Error {
    Error::bug(format!("adapter on `{}`: a weight of shape {:?} is not a matrix", site.name, site.weight.shape()))
}

impl AdapterPlan for LoraPlan {
    fn check(&self) -> Result<()> {
        self.selection.check(self.origin.is_none()).map_err(|e| self.name_origin(e))
    }

    fn attach(&self, site: &AdapterSite, add: &mut RegisterParam) -> Result<Option<Box<dyn Adapter>>> {
        let refuse = |why: &str, hint: &str| {
            Err(self.name_origin(Error::user(format!("adapter on `{}`: {why}", site.name)).hint(hint)))
        };
        Ok(match self.selection.adaptation(site.name, site.layer) {
            None => None,
            Some(ModuleAdaptation::Save) if site.tied => {
                return refuse(
                    "embedding and output head share one weight in this model; training one of them in full would separate them",
                    "name it in targets, for a low-rank update of it alone, and leave it out of modules_to_save",
                );
            }
            Some(ModuleAdaptation::Save) => {
                let copy = |t: &Tensor| t.to_kind(Kind::Float).copy();
                let weight = add("weight", copy(&site.weight.dense(site.weight.kind())), ParamRole::Trained);
                let bias = site.bias.map(|b| add("bias", copy(b), ParamRole::Trained));
                Some(Box::new(FullyTrainedModule { weight, bias }))
            }
            Some(ModuleAdaptation::Lora { .. }) if matches!(site.layer, LayerKind::Norm | LayerKind::Score) => {
                return refuse(
                    "LoRA attaches to linear layers and embeddings only",
                    "name such layers in targets, or train this module in full with modules_to_save",
                );
            }
            Some(ModuleAdaptation::Lora { rank, alpha })
                if matches!(site.layer, LayerKind::Embedding | LayerKind::Positions) =>
            {
                let [count, width] = site.weight.shape()[..] else { return Err(not_a_matrix(site)) };
                let options = (Kind::Float, Device::Cpu);
                let own = self.own_base_weight(site, add)?;
                // As in PEFT, A starts at zero here and B is random.
                let a = add(EMBEDDING_A, Tensor::zeros([rank, count], options), ParamRole::Trained);
                let b = add(EMBEDDING_B, Tensor::randn([width, rank], options), ParamRole::Trained);
                Some(Box::new(LoraEmbedding { a, b, scale: scale(alpha, rank, self.spec.rslora), own }))
            }
            Some(ModuleAdaptation::Lora { rank, alpha }) => {
                let [outputs, inputs] = site.weight.shape()[..] else { return Err(not_a_matrix(site)) };
                let options = (Kind::Float, Device::Cpu);
                let a = match self.spec.init {
                    // Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * in))
                    LoraInit::Kaiming => {
                        let bound = (inputs as f64).powf(-0.5);
                        Tensor::empty([rank, inputs], options).uniform_(-bound, bound)
                    }
                    LoraInit::Gaussian => Tensor::randn([rank, inputs], options) / rank as f64,
                };
                let own = if site.layer == LayerKind::Head { self.own_base_weight(site, add)? } else { None };
                let a = add("lora_A.weight", a, ParamRole::Trained);
                let b = add("lora_B.weight", Tensor::zeros([outputs, rank], options), ParamRole::Trained);
                Some(Box::new(Lora {
                    a,
                    b,
                    scale: scale(alpha, rank, self.spec.rslora),
                    dropout: self.spec.dropout,
                    own,
                    cast: RefCell::default(),
                }))
            }
        })
    }
}
