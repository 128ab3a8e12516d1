//! What LoHa and LoKr have in common, which PEFT has from LyCORIS (Yeh et al. 2023, arXiv 2309.14859): rank and alpha, which
//! may have other values in some modules; dropouts of the update; initial values; merging.

use super::lora::MAX_RANK;
use super::peft::{PeftConfig, number};
use super::targets::PatternValues;
use super::update::{SumUpdate, WeightUpdate};
use crate::error::Result;
use crate::nn::scale::scale_columns;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

/// Rank, alpha and dropouts; the update is multiplied by `alpha / rank`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LycorisSettings {
    /// Rank of the factors.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
    pub rank: i64,
    /// Numerator of the scale `alpha / rank`.
    #[schemars(range(min = 0.0))]
    pub alpha: f64,
    /// Probability with which an output of the update is dropped, while training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub rank_dropout: f64,
    /// Probability with which the update of a whole module is dropped, while training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub module_dropout: f64,
    /// Another rank for modules whose name ends with the pattern (a regular expression); the first match is used.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("propertyNames" = {"type": "string", "format": "regex"}))]
    #[schemars(extend("additionalProperties" = {"type": "integer", "minimum": 1}))]
    pub rank_pattern: IndexMap<String, i64>,
    /// Another alpha for modules whose name ends with the pattern (a regular expression); the first match is used.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("propertyNames" = {"type": "string", "format": "regex"}))]
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0.0}))]
    pub alpha_pattern: IndexMap<String, f64>,
}

/// PEFT's values.
impl Default for LycorisSettings {
    fn default() -> Self {
        let (rank_pattern, alpha_pattern) = (IndexMap::new(), IndexMap::new());
        Self { rank: 8, alpha: 8.0, rank_dropout: 0.0, module_dropout: 0.0, rank_pattern, alpha_pattern }
    }
}

/// Keys of adapter_config.json that these settings are read from, and two that change nothing in a trained linear layer.
const KEYS: [&str; 8] = [
    "alpha",
    "alpha_pattern",
    "init_weights",
    "module_dropout",
    "r",
    "rank_dropout",
    "rank_pattern",
    "use_effective_conv2d",
];

impl LycorisSettings {
    /// Reads the settings of a PEFT config, which may also have the kind's `own` keys. Fails for other options and for
    /// values that no adapter can have.
    pub(super) fn read(config: &PeftConfig, own: &[&str]) -> Result<Self> {
        config.check_keys(&[&KEYS[..], own].concat())?;
        let usual = Self::default();
        let rank_pattern: IndexMap<String, i64> = config.read("rank_pattern")?.unwrap_or_default();
        if let Some(rank) = rank_pattern.values().find(|rank| !(1..=MAX_RANK).contains(*rank)) {
            let hint = format!("a rank is between 1 and {MAX_RANK}");
            return Err(config.unsupported_value("rank_pattern", &json!(rank), &hint));
        }
        Ok(Self {
            rank: config.read_rank("r", usual.rank, MAX_RANK)?,
            alpha: config.read("alpha")?.unwrap_or(usual.alpha),
            rank_dropout: config.read_dropout("rank_dropout")?,
            module_dropout: config.read_dropout("module_dropout")?,
            rank_pattern,
            alpha_pattern: config.read("alpha_pattern")?.unwrap_or_default(),
        })
    }

    /// Returns the keys of adapter_config.json.
    pub(super) fn config(&self) -> Map<String, Value> {
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let values = [
            number(self.alpha),
            alphas.into(),
            json!(true),
            json!(self.module_dropout),
            json!(self.rank),
            json!(self.rank_dropout),
            json!(self.rank_pattern),
            json!(false),
        ];
        KEYS.map(String::from).into_iter().zip(values).collect()
    }

    /// Returns what must be equal in an adapter and the one that it continues.
    pub(super) fn fixed(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("rank", json!(self.rank)),
            ("alpha", json!(self.alpha)),
            ("rank_pattern", json!(self.rank_pattern)),
            ("alpha_pattern", json!(self.alpha_pattern)),
        ]
    }

    /// Returns the larger of the two dropouts.
    pub(super) fn largest_dropout(&self) -> f64 {
        self.rank_dropout.max(self.module_dropout)
    }

    /// Returns how updates are dropped; `scaled`: what is left of the outputs is enlarged, so that their mean stays.
    pub(super) fn dropout(&self, scaled: bool) -> UpdateDropout {
        UpdateDropout { outputs: self.rank_dropout, module: self.module_dropout, scaled }
    }

    /// Compiles the patterns; `kind` is the name of the kind's section in a recipe. Fails for invalid regular expressions.
    pub(super) fn modules(&self, kind: &str) -> Result<ModuleRanks> {
        let key = |name: &str| format!("adapter.{kind}.{name}");
        Ok(ModuleRanks {
            ranks: PatternValues::new(&self.rank_pattern, self.rank, &key("rank_pattern"))?,
            alphas: PatternValues::new(&self.alpha_pattern, self.alpha, &key("alpha_pattern"))?,
        })
    }
}

/// Rank and scale of each module.
pub(super) struct ModuleRanks {
    ranks: PatternValues<i64>,
    alphas: PatternValues<f64>,
}

impl ModuleRanks {
    /// Returns the rank of a module.
    pub fn rank(&self, module: &str) -> i64 {
        self.ranks.get(module)
    }

    /// Returns the scale of a module's update.
    pub fn scale(&self, module: &str) -> f64 {
        self.alphas.get(module) / self.rank(module) as f64
    }
}

/// Drops outputs of updates, and whole updates, in training.
#[derive(Clone, Copy)]
pub(super) struct UpdateDropout {
    /// Probability for each output of a layer. As in PEFT, all tokens lose the same ones.
    outputs: f64,
    /// Probability for each update.
    module: f64,
    /// True if the outputs that are left are divided by their share.
    scaled: bool,
}

impl UpdateDropout {
    /// Drops parts of an update (T, out) while training. What is dropped is drawn anew at each call.
    pub fn apply(self, update: Tensor, train: bool) -> Tensor {
        if !train || (self.outputs == 0.0 && self.module == 0.0) {
            return update;
        }
        let kept = |count: i64, dropped: f64| {
            Tensor::empty([count], (Kind::Float, update.device())).bernoulli_float_(1.0 - dropped)
        };
        let mut factors = kept(1, self.module).expand([update.size()[1]], false).copy();
        if self.outputs > 0.0 {
            let outputs = kept(update.size()[1], self.outputs);
            factors *= match self.scaled {
                // Where none is left, PEFT divides by zero.
                true => &outputs / outputs.mean(Kind::Float).clamp_min(1e-6),
                false => outputs,
            };
        }
        scale_columns(&update, &factors)
    }
}

/// Returns first values for a factor: Kaiming uniform with a = sqrt(5), as PEFT.
pub(super) fn random(shape: [i64; 2]) -> Tensor {
    let bound = (shape[1] as f64).powf(-0.5);
    Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
}

/// Returns first values of zero for a factor.
pub(super) fn zeros(shape: [i64; 2]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

/// Returns the changes of the weights of `modules`, which add the matrix (out, in) that `matrix` returns for each.
pub(super) fn updates(
    modules: &BTreeSet<&str>,
    matrix: impl Fn(&str) -> Result<Tensor>,
) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
    let update = |module: &&str| Ok((format!("{module}.weight"), Box::new(SumUpdate(matrix(module)?)) as _));
    modules.iter().map(update).collect()
}
