//! Rank and alpha of the kinds whose update has both, and other values of them for some modules.

use super::lora::MAX_RANK;
use super::peft::{PeftConfig, number};
use super::targets::PatternValues;
use crate::error::Result;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Rank and alpha; the update is multiplied by `alpha / rank`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RankSettings {
    /// Rank of the factors.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
    pub rank: i64,
    /// Numerator of the scale `alpha / rank`.
    #[schemars(range(min = 0.0))]
    pub alpha: f64,
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
impl Default for RankSettings {
    fn default() -> Self {
        Self { rank: 8, alpha: 8.0, rank_pattern: IndexMap::new(), alpha_pattern: IndexMap::new() }
    }
}

/// Keys of adapter_config.json that these settings are read from.
pub(super) const KEYS: [&str; 4] = ["alpha", "alpha_pattern", "r", "rank_pattern"];

impl RankSettings {
    /// Reads the settings of a PEFT config. Fails for ranks that no adapter can have.
    pub(super) fn read(config: &PeftConfig) -> Result<Self> {
        let usual = Self::default();
        let rank_pattern: IndexMap<String, i64> = config.read("rank_pattern")?.unwrap_or_default();
        if let Some(rank) = rank_pattern.values().find(|rank| !(1..=MAX_RANK).contains(*rank)) {
            let hint = format!("a rank is between 1 and {MAX_RANK}");
            return Err(config.unsupported_value("rank_pattern", &json!(rank), &hint));
        }
        Ok(Self {
            rank: config.read_rank("r", usual.rank, MAX_RANK)?,
            alpha: config.read("alpha")?.unwrap_or(usual.alpha),
            rank_pattern,
            alpha_pattern: config.read("alpha_pattern")?.unwrap_or_default(),
        })
    }

    /// Returns the keys of adapter_config.json.
    pub(super) fn config(&self) -> Map<String, Value> {
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let values = [number(self.alpha), alphas.into(), json!(self.rank), json!(self.rank_pattern)];
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

    /// Compiles the patterns; `section` is the kind's in a recipe. Fails for invalid regular expressions.
    pub(super) fn modules(&self, section: &str) -> Result<ModuleRanks> {
        let key = |name: &str| format!("{section}.{name}");
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
