//! The settings of LoRA, as a recipe gives them.

use crate::adapters::targets::Targets;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Largest rank that is accepted. No layer is wider than this, so a larger rank is a typing error; it would allocate
/// huge tensors before anything else could refuse it.
pub const MAX_RANK: i64 = 1 << 16;

/// Low-rank adaptation: `y = W x + scale · B A dropout(x)`, `scale = alpha / rank`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSpec {
    /// Rank of the update.
    #[schemars(range(min = 1, max = 65536))] // MAX_RANK
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
    /// Only these layers, by number from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<i64>>,
    /// Names of the module lists that `layers` counts in; by default any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers_pattern: Vec<String>,
    /// Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv 2312.03732).
    pub rslora: bool,
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
    /// Modules trained in full and saved with the adapter, by name or name ending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// How A is initialised; B starts at zero.
    pub init: LoraInit,
    /// Folder of an adapter to continue training from, with the same base, rank, alpha and targets. It is then also the
    /// reference model of methods that need one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// True if adapted weights are stored as (in, out). Taken from the model, never from a recipe; PEFT's files
    /// contain it.
    #[serde(skip)]
    pub fan_in_fan_out: bool,
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

/// How LoRA's A is initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// Kaiming uniform with a = sqrt(5), as PEFT.
    #[default]
    Kaiming,
    /// Normal with standard deviation 1 / rank.
    Gaussian,
}
