//! Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = W x + s B A dropout(x)`.
//!
//! A (R, in) and B (out, R) are float32 masters; products run in the dtype of x. `s` is alpha / R, or
//! alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

use super::spec::{LoraInit, LoraSpec};
use super::targets::{Choice, Selection};
use crate::error::{Error, Result};
use crate::nn::joint::{self, Input, LowRank, Part};
use crate::nn::linear::{cast, decoding, look_up, product, product_onto};
use crate::nn::{Adapter, Attach, Dense, Layer, Register, Role, Site};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// One module's update.
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
    /// The weight that the update was learnt on, where the adapter's file holds one that is not the base's.
    own: Option<Tensor>,
    /// A and s B as they were last cast for decoding, and the masters' versions.
    cast: RefCell<Option<([i64; 2], Tensor, Tensor)>>,
}

impl Lora {
    /// A and s B in `kind`, cast again only when an update has changed the masters: a decoding step is short.
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

    /// The same for learning, made anew: small tensors that stay between large ones that go would cost memory. `scale` is
    /// in float32 until then: 1 / (1 - dropout) rounded to bf16 in a mask would make every update up to 0.4 % too large.
    fn factors(&self, kind: Kind, scale: f64) -> LowRank<'_> {
        let _no_grad = tch::no_grad_guard();
        let (a, b) = (cast(&self.a, kind), cast(&(&self.b * scale), kind));
        LowRank { masters: [&self.a, &self.b], a, b, scale }
    }
}

/// The ends of names in PEFT's files: a table's factors, and the weight beneath an update.
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
pub(super) const BASE_LAYER: &str = ".base_layer.weight";
/// Modules whose own weight PEFT saves beneath an update.
const BASES_SAVED: [&str; 2] = ["embed_tokens", "lm_head"];

/// The module whose update a tensor of an adapter is the first factor of.
pub fn adapted_module(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(".lora_A.weight").or_else(|| tensor.strip_suffix(EMBEDDING_A)?.strip_suffix('.'))
}

/// Whether a tensor of an adapter is the second factor of an update.
pub fn second_factor(tensor: &str) -> bool {
    tensor.ends_with(".lora_B.weight") || tensor.ends_with(EMBEDDING_B)
}

/// alpha / R, or alpha / sqrt(R).
pub fn scale(alpha: f64, rank: i64, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let clone = |t: &Tensor| t.shallow_clone();
        let own = self.own.as_ref().map(|w| Dense { weight: clone(w), bias: base.bias.as_ref().map(clone) });
        let base = own.as_ref().unwrap_or(base);
        if decoding() {
            let (a, b) = self.cast(x.kind());
            return product_onto(base.forward(x), &product(x, &a, None), &b);
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let mask = (kept < 1.0).then(|| Tensor::empty_like(x).bernoulli_float_(kept)); // zeros and ones
        let part = Part { base, update: Some(self.factors(x.kind(), self.scale / kept)) };
        joint::products(&Input::kept(x), mask.as_ref(), &[part]).remove(0)
    }

    fn low_rank(&self, kind: Kind, train: bool) -> Option<LowRank<'_>> {
        let plain = self.own.is_none() && (!train || self.dropout == 0.0);
        plain.then(|| self.factors(kind, self.scale))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a) * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}

/// A table's update: row t of `W + s (B A)^T`. Dropout has no place on ids.
pub struct LoraEmbedding {
    /// (R, V)
    a: Tensor,
    /// (D, R)
    b: Tensor,
    scale: f64,
    /// As in `Lora`.
    own: Option<Tensor>,
}

impl Adapter for LoraEmbedding {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        let low = look_up(&self.a.tr(), ids); // (T, R)
        let update = low.matmul(&self.b.tr()) * self.scale; // (T, D)
        look_up(self.own.as_ref().unwrap_or(weight), ids).to_kind(Kind::Float) + update
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a).tr() * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}

/// A module trained whole, bias included, beside its frozen original (`modules_to_save`).
pub struct Whole {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Adapter for Whole {
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

/// Attaches LoRA by a recipe's or an adapter_config.json's rules.
pub struct LoraPlan {
    spec: LoraSpec,
    selection: Selection,
    /// The adapter's config on disk, if it comes from there.
    origin: Option<PathBuf>,
    /// Weights that the adapter's file holds of the layers beneath its updates, by module. PEFT writes them of embeddings
    /// and output heads, and puts them into the base as it loads the adapter.
    bases: BTreeMap<String, Tensor>,
}

impl LoraPlan {
    /// By a recipe: every module it names must exist.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        Ok(Self { spec: spec.clone(), selection: Selection::new(spec)?, origin: None, bases: BTreeMap::new() })
    }

    /// By the config of an adapter on disk, called `origin` in messages. It may name modules that the model has
    /// not; its tensors tell what it holds.
    pub fn of_file(spec: &LoraSpec, origin: &Path) -> Result<Self> {
        let selection = Selection::new(spec).map_err(|e| e.context(origin.display()))?;
        Ok(Self { spec: spec.clone(), selection, origin: Some(origin.into()), bases: BTreeMap::new() })
    }

    /// With the weights of layers beneath updates that an adapter's tensors hold.
    pub fn on_bases(mut self, tensors: &BTreeMap<String, Tensor>) -> Self {
        let base =
            |(name, t): (&String, &Tensor)| Some((name.strip_suffix(BASE_LAYER)?.to_string(), t.shallow_clone()));
        self.bases = tensors.iter().filter_map(base).collect();
        self
    }

    /// The weight that is used in place of the site's; registered, so that it is saved again. One that equals the site's
    /// costs no memory. Of a new adapter the site's own is saved where PEFT does so.
    fn own(&self, site: &Site, add: &mut Register) -> Result<Option<Tensor>> {
        let Some(base) = self.bases.get(site.name) else {
            if self.origin.is_none() && BASES_SAVED.contains(&site.name.rsplit('.').next().unwrap_or_default()) {
                let _ = add(&BASE_LAYER[1..], site.weight.shallow_clone(), Role::Frozen);
            }
            return Ok(None);
        };
        if base.size() != site.weight.size() {
            return Err(self.name_origin(
                Error::user(format!(
                    "adapter on `{}`: its file holds a base layer of shape {:?}, the model has {:?}",
                    site.name,
                    base.size(),
                    site.weight.size()
                ))
                .hint("it was trained on a base with another vocabulary: give that one"),
            ));
        }
        let base = cast(&base.to_device(site.weight.device()), site.weight.kind());
        let equal = base.equal(site.weight);
        if site.tied && !equal {
            return Err(self.name_origin(
                Error::user(format!(
                    "adapter on `{}`: its file holds a base layer that is not the model's, which embedding and output head share",
                    site.name
                ))
                .hint("was it trained on another base? Give that one"),
            ));
        }
        let base = if equal { site.weight.shallow_clone() } else { base };
        let base = add(&BASE_LAYER[1..], base, Role::Frozen);
        Ok((!equal).then_some(base))
    }

    fn name_origin(&self, e: Error) -> Error {
        match &self.origin {
            Some(file) => e.context(file.display()),
            None => e,
        }
    }
}

impl Attach for LoraPlan {
    fn check(&self) -> Result<()> {
        self.selection.check(self.origin.is_none()).map_err(|e| self.name_origin(e))
    }

    fn attach(&self, site: &Site, add: &mut Register) -> Result<Option<Box<dyn Adapter>>> {
        let refuse = |why: &str, hint: &str| {
            Err(self.name_origin(Error::user(format!("adapter on `{}`: {why}", site.name)).hint(hint)))
        };
        Ok(match self.selection.choose(site.name, site.layer) {
            None => None,
            Some(Choice::Save) if site.tied => {
                return refuse(
                    "embedding and output head share one weight in this model; training one of them whole would part them",
                    "name it in targets, for a low-rank update of it alone, and leave it out of modules_to_save",
                );
            }
            Some(Choice::Save) => {
                let copy = |t: &Tensor| t.to_kind(Kind::Float).copy();
                let weight = add("weight", copy(site.weight), Role::Trained);
                let bias = site.bias.map(|b| add("bias", copy(b), Role::Trained));
                Some(Box::new(Whole { weight, bias }))
            }
            Some(Choice::Lora { .. }) if matches!(site.layer, Layer::Norm | Layer::Score) => {
                return refuse(
                    "LoRA attaches to linear layers and embeddings only",
                    "name such layers in targets, or train this module whole with modules_to_save",
                );
            }
            Some(Choice::Lora { rank, alpha }) if matches!(site.layer, Layer::Embedding | Layer::Positions) => {
                let (count, width) = site.weight.size2()?;
                let options = (Kind::Float, Device::Cpu);
                let own = self.own(site, add)?;
                // As PEFT begins: here A is the zero.
                let a = add(EMBEDDING_A, Tensor::zeros([rank, count], options), Role::Trained);
                let b = add(EMBEDDING_B, Tensor::randn([width, rank], options), Role::Trained);
                Some(Box::new(LoraEmbedding { a, b, scale: scale(alpha, rank, self.spec.rslora), own }))
            }
            Some(Choice::Lora { rank, alpha }) => {
                let (outputs, inputs) = site.weight.size2()?;
                let options = (Kind::Float, Device::Cpu);
                let a = match self.spec.init {
                    // Kaiming uniform with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * in))
                    LoraInit::Kaiming => {
                        let bound = (inputs as f64).powf(-0.5);
                        Tensor::empty([rank, inputs], options).uniform_(-bound, bound)
                    }
                    LoraInit::Gaussian => Tensor::randn([rank, inputs], options) / rank as f64,
                };
                let own = if site.layer == Layer::Head { self.own(site, add)? } else { None };
                let a = add("lora_A.weight", a, Role::Trained);
                let b = add("lora_B.weight", Tensor::zeros([outputs, rank], options), Role::Trained);
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
