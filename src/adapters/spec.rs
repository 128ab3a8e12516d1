//! What a recipe says about an adapter.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The kinds of adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterSpec {
    /// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).
    Lora(LoraSpec),
}

/// No layer is wider; a larger rank is a slip of the pen, and would ask for memory before anything could refuse it.
pub const MOST_RANK: i64 = 1 << 16;

/// Low-rank adaptation: `y = W x + scale · B A dropout(x)`, `scale = alpha / rank`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSpec {
    /// Rank of the update.
    #[schemars(range(min = 1, max = 65536))] // MOST_RANK
    pub rank: i64,
    /// Numerator of the scale.
    #[schemars(range(min = 0.0))]
    pub alpha: f64,
    /// Dropout on the input of A, while training.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
    /// `all-linear`, a regular expression for the whole module name, or a list of names or name endings.
    pub targets: Targets,
    /// Modules left out, written as `targets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Targets>,
    /// Only these layers, by number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<i64>>,
    /// Names of the module lists that `layers` counts in; left out, any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers_pattern: Vec<String>,
    /// Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv 2312.03732).
    pub rslora: bool,
    /// Another rank for modules whose name ends with the pattern (a regular expression); the first match counts.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("propertyNames" = {"type": "string", "format": "regex"}))]
    #[schemars(extend("additionalProperties" = {"type": "integer", "minimum": 1}))]
    pub rank_pattern: IndexMap<String, i64>,
    /// Another alpha for modules whose name ends with the pattern; the first match counts.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    #[schemars(extend("propertyNames" = {"type": "string", "format": "regex"}))]
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0.0}))]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Modules trained whole and saved with the adapter, by name or name ending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// How A starts; B starts at zero.
    pub init: LoraInit,
    /// An adapter's folder to go on from, of the same base, rank, alpha and targets; methods with a reference compare with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// Adapted weights lie as (in, out). Told by the model, never by a recipe; PEFT's files say it.
    #[serde(skip)]
    pub fan_in_fan_out: bool,
}

/// The module that a reward model's scalar head is, in every family.
pub const SCORE: &str = "score";

impl LoraSpec {
    /// Holds a scalar head: the adapter of a reward or value model.
    pub fn scores(&self) -> bool {
        self.modules_to_save.iter().any(|m| m == SCORE)
    }
}

impl Default for LoraSpec {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Targets::default(),
            exclude: None,
            layers: None,
            layers_pattern: Vec::new(),
            rslora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            modules_to_save: Vec::new(),
            init: LoraInit::Kaiming,
            from: None,
            fan_in_fan_out: false,
        }
    }
}

/// Which modules an adapter attaches to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)] // leaves only: a string or a list, no keys whose positions could be lost
pub enum Targets {
    /// `all-linear` (every linear layer but the output head), or a regular expression for the whole name.
    #[schemars(extend("format" = "regex"))]
    Pattern(String),
    /// Names or name endings.
    Names(#[schemars(length(min = 1))] Vec<String>),
}

impl Default for Targets {
    fn default() -> Self {
        Targets::Pattern("all-linear".into())
    }
}

/// How LoRA's A starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// Kaiming uniform with a = sqrt(5), as PEFT.
    #[default]
    Kaiming,
    /// Normal with standard deviation 1 / rank.
    Gaussian,
}
