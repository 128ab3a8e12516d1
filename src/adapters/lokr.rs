//! LoKr (Edalati et al. 2022, arXiv 2212.10650, as in LyCORIS: Yeh et al. 2023, arXiv 2309.14859): the update is a Kronecker
//! product `s W1 ⊗ W2`, whose factors may be products of two thin matrices each.
//!
//! The layer never makes the update. If the inputs are written as a matrix X (inputs of W1, inputs of W2), the outputs are
//! `W1 X W2^T`.

use super::base_product::{base_product, row_by_row};
use super::cached::Cached;
use super::kind::{AdapterKind, ModuleMemory};
use super::lycoris::{self, LycorisSettings, ModuleRanks, UpdateDropout};
use super::module_settings::{ModuleKind, ModuleSettings};
use super::module_tensors::ModuleTensors;
use super::peft::{self, PeftConfig};
use super::plan::{AdaptLayer, AdaptedLayer};
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::recomputed::recomputed;
use crate::nn::weight::{cast, is_decoding};
use crate::nn::{Adapter, Dense};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Kind, Tensor};

/// Names of the factors in PEFT's files: each whole, or as the product of two.
const NAMES: [[&str; 3]; 2] = [["lokr_w1", "lokr_w1_a", "lokr_w1_b"], ["lokr_w2", "lokr_w2_a", "lokr_w2_b"]];

/// LoKr: `y = W x + alpha / rank · (W1 ⊗ W2) x`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("additionalProperties" = false))]
pub struct LokrSpec {
    /// Dropouts, and the rank of W2 and, with `decompose_both`, of W1, where that makes them smaller.
    #[serde(flatten)]
    pub ranks: LycorisSettings,
    /// Divide the outputs that `rank_dropout` leaves by their share, so that their mean stays.
    pub rank_dropout_scale: bool,
    /// Also make W1 a product of two thin matrices, where it is large.
    pub decompose_both: bool,
    /// Number of rows and columns of W1, if it divides those of the layer; left out, as near to the square root as
    /// possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub factor: Option<i64>,
    /// Which modules are adapted; left out, `all-linear`.
    #[serde(flatten)]
    pub modules: ModuleSettings,
}

impl ModuleKind for LokrSpec {
    const NAME: &'static str = "lokr";

    fn modules(&self) -> &ModuleSettings {
        &self.modules
    }

    fn modules_mut(&mut self) -> &mut ModuleSettings {
        &mut self.modules
    }
}

impl AdapterKind for LokrSpec {
    fn title(&self) -> &'static str {
        "LoKr"
    }

    fn describe(&self) -> String {
        format!("lokr r{}", self.ranks.rank)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        Ok(Box::new(AttachLokr { ranks: self.ranks.modules(Self::NAME)?, spec: self.clone() }))
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
        let mut fixed = self.ranks.fixed();
        fixed.extend([("decompose_both", json!(self.decompose_both)), ("factor", json!(self.factor))]);
        fixed
    }

    fn module_memory(&self, _module: &str, _shape: [u64; 2]) -> ModuleMemory {
        ModuleMemory { kept: 0, input: true, temporary: 0 }
    }

    fn peft_refusal(&self, _modules: &BTreeSet<&str>) -> Option<String> {
        peft::refusal_of_gpt2("LoKr", self.modules.fan_in_fan_out)
    }

    fn config(&self, base: &str) -> Value {
        let mut own = self.ranks.config();
        own.extend([
            ("decompose_both".to_string(), json!(self.decompose_both)),
            ("decompose_factor".to_string(), json!(self.factor.unwrap_or(-1))),
            ("rank_dropout_scale".to_string(), json!(self.rank_dropout_scale)),
        ]);
        peft::config(self, "LOKR", base, own.into())
    }

    fn tensor_prefix(&self) -> &'static str {
        "lokr_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        NAMES.as_flattened()
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        let (file, ranks) = (ModuleTensors { tensors, origin }, self.ranks.modules(Self::NAME)?);
        lycoris::updates(modules, |module| {
            let factor = |[whole, a, b]: [&str; 3]| {
                let rank = ranks.rank(module);
                match file.find(module, whole) {
                    Some(_) => file.get(module, whole, &[-1, -1]).map(|t| t.to_kind(Kind::Float)),
                    None => {
                        let (a, b) = (file.get(module, a, &[-1, rank])?, file.get(module, b, &[rank, -1])?);
                        Ok(a.to_kind(Kind::Float).matmul(&b.to_kind(Kind::Float)))
                    }
                }
            };
            Ok(factor(NAMES[0])?.kron(&factor(NAMES[1])?) * ranks.scale(module))
        })
    }
}

/// Reads the settings. Fails for options and values that ft does not support.
pub(super) fn read_config(config: &PeftConfig) -> Result<LokrSpec> {
    let ranks = LycorisSettings::read(config, &["decompose_both", "decompose_factor", "rank_dropout_scale"])?;
    let factor = match config.read::<i64>("decompose_factor")? {
        None | Some(-1) => None,
        Some(factor) if factor > 0 => Some(factor),
        Some(_) => return Err(config.unsupported("decompose_factor", "it is -1 or a positive number")),
    };
    Ok(LokrSpec {
        ranks,
        rank_dropout_scale: config.read("rank_dropout_scale")?.unwrap_or(false),
        decompose_both: config.read("decompose_both")?.unwrap_or(false),
        factor,
        modules: config.module_settings(&["q_proj", "v_proj"])?,
    })
}

/// Returns two numbers whose product is `n`: `factor` and the other one if it divides `n`, otherwise the two that are
/// nearest to each other, the smaller one first, which is at most `factor`.
fn split(n: i64, factor: Option<i64>) -> [i64; 2] {
    if let Some(factor) = factor.filter(|factor| n % factor == 0) {
        return [factor, n / factor];
    }
    let most = factor.unwrap_or(n);
    let divisors = (1..=most).take_while(|m| m * m <= n).filter(|m| n % m == 0);
    let first = divisors.last().unwrap_or(1);
    [first, n / first]
}

/// Attaches LoKr's factors.
struct AttachLokr {
    ranks: ModuleRanks,
    spec: LokrSpec,
}

impl AdaptLayer for AttachLokr {
    fn adapt(&self, layer: &mut AdaptedLayer) -> Result<Box<dyn Adapter>> {
        let [outputs, inputs] = layer.linear_matrix("LoKr")?.map(|n| split(n, self.spec.factor));
        let (rank, scale) = (self.ranks.rank(layer.name()), self.ranks.scale(layer.name()));
        let small = |n: usize| 2 * rank < outputs[n].max(inputs[n]); // a product of two is smaller
        let mut parts = Vec::new();
        let mut whole = [true; 2];
        for n in [0, 1] {
            let [name, a, b] = NAMES[n];
            // The update is 0 at first, because W1 is.
            let first = |shape: [i64; 2]| if n == 0 { lycoris::zeros(shape) } else { lycoris::random(shape) };
            whole[n] = !small(n) || (n == 0 && !self.spec.decompose_both);
            if whole[n] {
                parts.push(layer.trained(name, first([outputs[n], inputs[n]])));
            } else {
                parts.push(layer.trained(a, first([outputs[n], rank])));
                parts.push(layer.trained(b, lycoris::random([rank, inputs[n]])));
            }
        }
        let form = LokrForm { whole, scale };
        let dropout = self.spec.ranks.dropout(self.spec.rank_dropout_scale);
        Ok(Box::new(Lokr { parts, form, dropout, cast: Default::default() }))
    }
}

/// How the factors are stored.
#[derive(Clone, Copy)]
struct LokrForm {
    /// Which of W1 and W2 are stored whole.
    whole: [bool; 2],
    scale: f64,
}

impl LokrForm {
    /// Returns s W1 and W2 from their parts.
    fn factors(self, parts: &[Tensor]) -> [Tensor; 2] {
        let mut parts = parts.iter();
        let mut next = || parts.next().expect("as many parts as the form says");
        let [w1, w2] = self.whole.map(|whole| if whole { next().shallow_clone() } else { next().matmul(next()) });
        [w1 * self.scale, w2]
    }
}

/// The update of one layer.
struct Lokr {
    /// W1 or its two factors, then W2 or its two factors.
    parts: Vec<Tensor>,
    form: LokrForm,
    dropout: UpdateDropout,
    /// For decoding: s W1 and W2, cast.
    cast: Cached,
}

impl Adapter for Lokr {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let (y, form) = (base_product(x, &base.weight, base.bias.as_ref()), self.form);
        let parts: Vec<&Tensor> = self.parts.iter().collect();
        if is_decoding() {
            let factors = self.cast.get(x.kind(), &parts, || form.factors(&self.parts));
            return &y + row_by_row(x, |x| update(x, &factors)).view_as(&y);
        }
        let update = move |x: &Tensor, parts: &[Tensor]| update(x, &form.factors(parts).map(|t| cast(&t, x.kind())));
        let update = recomputed(x, &parts, update).view_as(&y);
        &y + self.dropout.apply(update, train)
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let [w1, w2] = self.form.factors(&self.parts);
        (weight.to_kind(Kind::Float) + w1.kron(&w2)).to_kind(weight.kind())
    }
}

/// Computes the update of x (T, in) from s W1 and W2: (T, out).
fn update(x: &Tensor, [w1, w2]: &[Tensor; 2]) -> Tensor {
    let ([l, m], [k, n]) = (sides(w1), sides(w2));
    w1.matmul(&x.reshape([-1, m, n]).matmul(&w2.tr())).reshape([-1, l * k])
}

fn sides(matrix: &Tensor) -> [i64; 2] {
    let size = matrix.size();
    [size[0], size[1]]
}

#[cfg(test)]
mod tests {
    use super::split;

    /// The examples of PEFT's `factorization`.
    #[test]
    fn sizes_are_split_as_in_peft() {
        let none = [256, 128, 127, 36, 96, 1].map(|n| split(n, None));
        assert_eq!(none, [[16, 16], [8, 16], [1, 127], [6, 6], [8, 12], [1, 1]]);
        assert_eq!([split(128, Some(4)), split(36, Some(5)), split(64, Some(128))], [[4, 32], [4, 9], [8, 8]]);
    }
}
