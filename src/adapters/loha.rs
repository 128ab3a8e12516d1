//! LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098): the update is the elementwise product of two low-rank matrices,
//! `s (A1 B1) ∘ (A2 B2)`, whose rank may be the square of theirs.
//!
//! Such a product is itself one of two factors of that rank: `(A1 B1) ∘ (A2 B2) = A B`, where the columns of A are the
//! products of each column of A1 with each of A2, and the rows of B those of the rows of B1 and B2. As long as that is less
//! work than the whole matrix, the layer computes with these factors.

use super::base_product::base_product;
use super::cached::Cached;
use super::kind::{AdapterKind, ModuleMemory};
use super::lycoris::{self, LycorisSettings, ModuleRanks, UpdateDropout};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::recomputed;
use crate::nn::weight::{add_product, is_decoding, product};
use crate::nn::{Adapter, Dense};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// Names of A1 (out, R), B1 (R, in), A2 (out, R) and B2 (R, in) in PEFT's files.
const NAMES: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];

/// LoHa: `y = W x + alpha / rank · ((A1 B1) ∘ (A2 B2)) x`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct LohaSpec {
    /// Rank of each of the two products, and dropouts.
    #[serde(flatten)]
    pub ranks: LycorisSettings,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl ModuleKind for LohaSpec {
    const NAME: &'static str = "loha";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }
}

impl AdapterKind for LohaSpec {
    fn title(&self) -> &'static str {
        "LoHa"
    }

    fn describe(&self) -> String {
        format!("loha r{}", self.ranks.rank)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        let (ranks, dropout) = (self.ranks.modules(Self::NAME)?, self.ranks.dropout(true));
        Ok(Box::new(AttachLoha { ranks, dropout }))
    }

    fn usual_lr(&self) -> f64 {
        1e-3
    }

    fn dropout(&self) -> f64 {
        self.ranks.largest_dropout()
    }

    fn set_dropout(&mut self, probability: f64) {
        (self.ranks.rank_dropout, self.ranks.module_dropout) = (probability, 0.0);
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        self.ranks.fixed()
    }

    fn module_memory(&self, module: &str, [outputs, inputs]: [u64; 2]) -> ModuleMemory {
        let rank = self.ranks.modules(Self::NAME).map_or(self.ranks.rank, |r| r.rank(module)) as u64;
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
        peft::config(self, "LOHA", base, self.ranks.config().into())
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
        let (file, ranks) = (ModuleTensors { tensors, origin }, self.ranks.modules(Self::NAME)?);
        lycoris::updates(modules, |module| {
            let r = ranks.rank(module);
            let a1 = file.get(module, NAMES[0], &[-1, r])?;
            let b1 = file.get(module, NAMES[1], &[r, -1])?;
            let a2 = file.get(module, NAMES[2], &[a1.size()[0], r])?;
            let b2 = file.get(module, NAMES[3], &[r, b1.size()[1]])?;
            Ok(matrix(&[a1, b1, a2, b2].map(|t| t.to_kind(Kind::Float)), ranks.scale(module)))
        })
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<LohaSpec> {
    let ranks = LycorisSettings::read(config, &[])?;
    Ok(LohaSpec { ranks, modules: config.module_settings(&["q_proj", "v_proj"])? })
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
struct AttachLoha {
    ranks: ModuleRanks,
    dropout: UpdateDropout,
}

impl AdaptLayer for AttachLoha {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("LoHa")?;
        let (rank, scale) = (self.ranks.rank(layer.name()), self.ranks.scale(layer.name()));
        let (a, b) = ([outputs, rank], [rank, inputs]);
        let first = [lycoris::random(a), lycoris::random(b), lycoris::random(a), lycoris::zeros(b)];
        let mut names = NAMES.iter();
        let parts = first.map(|t| layer.trained(names.next().expect("four names"), t));
        let low_rank = factors_are_less_work(rank as u64, outputs as u64, inputs as u64);
        Ok(Box::new(Loha { parts, scale, low_rank, dropout: self.dropout, cast: Default::default() }))
    }
}

/// The update of one layer.
struct Loha {
    /// A1, B1, A2, B2.
    parts: [Tensor; 4],
    scale: f64,
    /// True if the product uses factors of rank R².
    low_rank: bool,
    dropout: UpdateDropout,
    /// For decoding: the factors, or the matrix and nothing, cast.
    cast: Cached,
}

impl Adapter for Loha {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let (y, scale, low_rank) = (base_product(x, &base.weight, base.bias.as_ref()), self.scale, self.low_rank);
        let parts: Vec<&Tensor> = self.parts.iter().collect();
        if is_decoding() {
            let kept = |parts: &[Tensor]| match low_rank {
                true => factors(parts, scale),
                false => [matrix(parts, scale), Tensor::zeros([0], (Kind::Float, x.device()))],
            };
            let [a, b] = self.cast.get(x.kind(), &parts, || kept(&self.parts));
            return if low_rank { add_product(y, &product(x, &b, None), &a) } else { add_product(y, x, &a) };
        }
        let update = recomputed::products(x, &parts, move |parts| match low_rank {
            true => {
                let [a, b] = factors(parts, scale);
                vec![b, a]
            }
            false => vec![matrix(parts, scale)],
        });
        y + self.dropout.apply(update, train)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        (weight.to_kind(Kind::Float) + matrix(&self.parts, self.scale)).to_kind(weight.kind())
    }
}
