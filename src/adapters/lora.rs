//! Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = W x + s B A dropout(x)`.
//!
//! A (R, in) and B (out, R) are float32 masters; products run in the dtype of x. `s` is alpha / R, or
//! alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

use super::spec::{LoraInit, LoraSpec};
use super::targets::{Choice, Selection};
use crate::error::{Error, Result};
use crate::nn::joint::{self, Input, LowRank, Part};
use crate::nn::linear::{cast, decoding, product, product_onto};
use crate::nn::{Adapter, Attach, Dense, Layer, Site};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// One module's update.
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
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

    /// The same for learning, made anew: small tensors that stay between large ones that go would cost memory.
    fn factors(&self, kind: Kind) -> LowRank<'_> {
        let _no_grad = tch::no_grad_guard();
        let (a, b) = (cast(&self.a, kind), cast(&(&self.b * self.scale), kind));
        LowRank { masters: [&self.a, &self.b], a, b, scale: self.scale }
    }
}

/// alpha / R, or alpha / sqrt(R).
pub fn scale(alpha: f64, rank: i64, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        if decoding() {
            let (a, b) = self.cast(x.kind());
            return product_onto(base.forward(x), &product(x, &a, None), &b);
        }
        let mask = (train && self.dropout > 0.0)
            .then(|| Tensor::empty_like(x).bernoulli_float_(1.0 - self.dropout) / (1.0 - self.dropout));
        let part = Part { base, update: Some(self.factors(x.kind())) };
        joint::products(&Input::kept(x), mask.as_ref(), &[part]).remove(0)
    }

    fn low_rank(&self, kind: Kind, train: bool) -> Option<LowRank<'_>> {
        (!train || self.dropout == 0.0).then(|| self.factors(kind))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a) * self.scale;
        (weight.to_kind(Kind::Float) + delta).to_kind(weight.kind())
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
}

impl LoraPlan {
    /// By a recipe: every module it names must exist.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        Ok(Self { spec: spec.clone(), selection: Selection::new(spec)?, origin: None })
    }

    /// By the config of an adapter on disk, called `origin` in messages. It may name modules that the model has
    /// not; its tensors tell what it holds.
    pub fn of_file(spec: &LoraSpec, origin: &Path) -> Result<Self> {
        let selection = Selection::new(spec).map_err(|e| e.context(origin.display()))?;
        Ok(Self { spec: spec.clone(), selection, origin: Some(origin.into()) })
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

    fn attach(&self, site: &Site, add: &mut dyn FnMut(&str, Tensor) -> Tensor) -> Result<Option<Box<dyn Adapter>>> {
        let refuse = |why: &str, hint: &str| {
            Err(self.name_origin(Error::user(format!("adapter on `{}`: {why}", site.name)).hint(hint)))
        };
        Ok(match self.selection.choose(site.name, site.layer) {
            None => None,
            Some(_) if site.tied => {
                return refuse(
                    "embedding and output head share one weight in this model; adapting one would part them",
                    "leave the embedding and lm_head out of targets and modules_to_save",
                );
            }
            Some(Choice::Save) => {
                let copy = |t: &Tensor| t.to_kind(Kind::Float).copy();
                let weight = add("weight", copy(site.weight));
                Some(Box::new(Whole { weight, bias: site.bias.map(|b| add("bias", copy(b))) }))
            }
            Some(Choice::Lora { .. }) if !matches!(site.layer, Layer::Linear | Layer::Head) => {
                return refuse(
                    "LoRA attaches to linear layers only",
                    "name linear layers in targets, or train this module whole with modules_to_save",
                );
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
                let a = add("lora_A.weight", a);
                let b = add("lora_B.weight", Tensor::zeros([outputs, rank], options));
                Some(Box::new(Lora {
                    a,
                    b,
                    scale: scale(alpha, rank, self.spec.rslora),
                    dropout: self.spec.dropout,
                    cast: RefCell::default(),
                }))
            }
        })
    }
}
