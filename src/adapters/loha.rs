//! LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098): the update is the elementwise product of two low-rank matrices,
//! `s (A1 B1) ∘ (A2 B2)`, whose rank may be the square of theirs.
//!
//! Such a product is itself one of two factors of that rank: `(A1 B1) ∘ (A2 B2) = A B`, where the columns of A are the
//! products of each column of A1 with each of A2, and the rows of B those of the rows of B1 and B2. As long as that is less
//! work than the whole matrix, the layer computes with these factors.

use super::base_product::base_product;
use super::cached::Cached;
use super::kind::{AdapterKind, ModuleMemory};
use super::module_settings::{ALL_LINEAR, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::rank_settings::{self, ModuleRanks, RankSettings};
use super::targets::{ModuleRules, ModuleRulesMut};
use super::update::{SumUpdate, WeightUpdate};
use crate::error::Result;
use crate::nn::recomputed::recomputed;
use crate::nn::weight::{add_product, cast, is_decoding, product};
use crate::nn::{Adapter, Dense, computed_weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Names of A1 (out, R), B1 (R, in), A2 (out, R) and B2 (R, in) in PEFT's files.
const NAMES: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];
const SECTION: &str = "adapter.loha";

/// LoHa: `y = W x + alpha / rank · ((A1 B1) ∘ (A2 B2)) x`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct LohaSpec {
    /// Rank of each of the two products.
    #[serde(flatten)]
    pub ranks: RankSettings,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl AdapterKind for LohaSpec {
    fn name(&self) -> &'static str {
        "loha"
    }

    fn title(&self) -> &'static str {
        "LoHa"
    }

    fn describe(&self) -> String {
        format!("loha r{}", self.ranks.rank)
    }

    fn rules(&self) -> ModuleRules<'_> {
        self.modules.rules(SECTION, &ALL_LINEAR)
    }

    fn rules_mut(&mut self) -> ModuleRulesMut<'_> {
        self.modules.rules_mut(&ALL_LINEAR)
    }

    fn continues(&self) -> Option<&Path> {
        self.modules.from.as_deref()
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachLoha(self.ranks.modules(SECTION)?)))
    }

    fn usual_lr(&self) -> f64 {
        1e-3
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        self.ranks.fixed()
    }

    fn module_memory(&self, module: &str, [outputs, inputs]: [u64; 2]) -> ModuleMemory {
        let rank = self.ranks.modules(SECTION).map_or(self.ranks.rank, |r| r.rank(module)) as u64;
        let temporary = match factors_are_less_work(rank, outputs, inputs) {
            true => 3 * rank * rank * (inputs + outputs), // both factors, their gradients and what these are made of
            false => 5 * inputs * outputs,
        };
        ModuleMemory { kept: 0, input: true, temporary }
    }

    fn peft_refusal(&self, _modules: &BTreeSet<&str>) -> Option<String> {
        peft::refusal_of_gpt2("LoHa", self.modules.fan_in_fan_out)
    }

    fn config(&self, base: &str) -> Value {
        let mut own = self.ranks.config();
        own.extend([
            ("init_weights".to_string(), json!(true)),
            ("module_dropout".to_string(), json!(0.0)),
            ("rank_dropout".to_string(), json!(0.0)),
            ("use_effective_conv2d".to_string(), json!(false)),
        ]);
        peft::config(self, "LOHA", base, own.into())
    }

    fn tensor_prefix(&self) -> &'static str {
        "hada_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &NAMES
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let (file, ranks) = (ModuleTensors { tensors, origin }, self.ranks.modules(SECTION)?);
        let update = |module: &&str| {
            let r = ranks.rank(module);
            let a1 = file.get(module, NAMES[0], &[-1, r])?;
            let b1 = file.get(module, NAMES[1], &[r, -1])?;
            let a2 = file.get(module, NAMES[2], &[a1.size()[0], r])?;
            let b2 = file.get(module, NAMES[3], &[r, b1.size()[1]])?;
            let matrix = matrix(&[a1, b1, a2, b2].map(|t| t.to_kind(Kind::Float)), ranks.scale(module));
            Ok((format!("{module}.weight"), Box::new(SumUpdate(matrix)) as _))
        };
        modules.iter().map(update).collect()
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<LohaSpec> {
    // The dropouts and the option for convolutions change nothing in a trained linear layer.
    let others = ["init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"];
    config.check_keys(&[&rank_settings::KEYS[..], &others].concat())?;
    let modules = config.module_settings(&["q_proj", "v_proj"])?;
    let spec = LohaSpec { ranks: RankSettings::read(config)?, modules };
    config.check_head(spec.has_scalar_head())?;
    Ok(spec)
}

/// Returns true if the update's product is less work with the factors A and B of rank R² than with the whole matrix.
fn factors_are_less_work(rank: u64, outputs: u64, inputs: u64) -> bool {
    rank.saturating_mul(rank).saturating_mul(outputs + inputs) <= outputs * inputs
}

/// Returns `s (A1 B1) ∘ (A2 B2)`: (out, in).
fn matrix(parts: &[Tensor], scale: f64) -> Tensor {
    parts[0].matmul(&parts[1]) * parts[2].matmul(&parts[3]) * scale
}

/// Returns s A (out, R²) and B (R², in), whose product is `s (A1 B1) ∘ (A2 B2)`.
fn factors(parts: &[Tensor], scale: f64) -> [Tensor; 2] {
    let (outputs, inputs) = (parts[0].size()[0], parts[1].size()[1]);
    let a = parts[0].unsqueeze(2) * parts[2].unsqueeze(1); // (out, R, R)
    let b = parts[1].unsqueeze(1) * parts[3].unsqueeze(0); // (R, R, in)
    [a.reshape([outputs, -1]) * scale, b.reshape([-1, inputs])]
}

/// Attaches LoHa's factors.
struct AttachLoha(ModuleRanks);

impl AdaptLayer for AttachLoha {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("LoHa")?;
        let (rank, scale) = (self.0.rank(layer.name()), self.0.scale(layer.name()));
        let random = |shape: [i64; 2]| {
            let bound = (shape[1] as f64).powf(-0.5); // Kaiming uniform with a = sqrt(5), as PEFT
            Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
        };
        let (a, b) = ([outputs, rank], [rank, inputs]);
        let first = [random(a), random(b), random(a), Tensor::zeros(b, (Kind::Float, Device::Cpu))];
        let mut names = NAMES.iter();
        let parts = first.map(|t| layer.trained(names.next().expect("four names"), t));
        let low_rank = factors_are_less_work(rank as u64, outputs as u64, inputs as u64);
        Ok(Box::new(Loha { parts, scale, low_rank, cast: Default::default() }))
    }
}

/// The update of one layer.
struct Loha {
    /// A1, B1, A2, B2.
    parts: [Tensor; 4],
    scale: f64,
    /// True if the product uses factors of rank R².
    low_rank: bool,
    /// For decoding: the factors, or the matrix and nothing, cast.
    cast: Cached,
}

impl Adapter for Loha {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        let (y, scale) = (base_product(x, &base.weight, base.bias.as_ref()), self.scale);
        let parts: Vec<&Tensor> = self.parts.iter().collect();
        if is_decoding() {
            let kept = |parts: &[Tensor]| match self.low_rank {
                true => factors(parts, scale),
                false => [matrix(parts, scale), Tensor::zeros([0], (Kind::Float, x.device()))],
            };
            let [a, b] = self.cast.get(x.kind(), &parts, || kept(&self.parts));
            return if self.low_rank { add_product(y, &product(x, &b, None), &a) } else { add_product(y, x, &a) };
        }
        if !self.low_rank {
            return y + computed_weight::product(x, &parts, move |parts| matrix(parts, scale));
        }
        let update = move |x: &Tensor, parts: &[Tensor]| {
            let [a, b] = factors(parts, scale).map(|t| cast(&t, x.kind()));
            x.matmul(&b.tr()).matmul(&a.tr())
        };
        y + recomputed(x, &parts, update)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        (weight.to_kind(Kind::Float) + matrix(&self.parts, self.scale)).to_kind(weight.kind())
    }
}
