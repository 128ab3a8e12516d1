//! The settings of LoRA and its relatives, as a recipe gives them.

use crate::adapters::targets::Targets;
use crate::adapters::token_rows::TokenName;
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
    /// DoRA (Liu et al. 2024, arXiv 2402.09353): each row of the updated weight is scaled to a trained length, its magnitude, which starts as the length of the base's row.
    pub dora: bool,
    /// Also train a bias behind B: `y = W x + scale · (B A x + bias)`. Layers without a bias of their own cannot be merged then.
    pub bias: bool,
    /// LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): A stays at its initial values. It needs no gradient and no optimiser state, and the inputs of adapted layers are not kept for the backward.
    pub freeze_a: bool,
    /// LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the learning rate of B is this many times that of A. The paper suggests 16, with a lower `optim.lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub b_lr_ratio: Option<f64>,
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
    /// Tokens, by id or text, whose rows of the embedding are trained in full and saved with the adapter; an output head that shares the embedding's weight follows. Those of `model.new_tokens` are added by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_rows: Vec<TokenName>,
    /// Tokens, by id or text, whose rows of an output head with a weight of its own are trained in full and saved with the adapter. Those of `model.new_tokens` are added by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub head_rows: Vec<TokenName>,
    /// If embedding and output head share one weight, keep them one: an update of one of them, or the copy trained as a module to save, is that of both (`ensure_weight_tying` of PEFT).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tie: bool,
    /// The initial values of A and B.
    pub init: LoraInit,
    /// With `init: eva`: a module may get this many times its rank, at the expense of others whose inputs vary in fewer directions (rho in the paper, which uses 2). The sum of ranks stays. The run's plan has the ranks. 1, or left out: every module keeps its rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 100.0))]
    pub eva_rho: Option<f64>,
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
            dora: false,
            bias: false,
            freeze_a: false,
            b_lr_ratio: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            modules_to_save: Vec::new(),
            token_rows: Vec::new(),
            head_rows: Vec::new(),
            tie: false,
            init: LoraInit::Kaiming,
            eva_rho: None,
            from: None,
            fan_in_fan_out: false,
        }
    }
}

/// The initial values of LoRA's A and B. Only linear layers have a choice; in embeddings A starts at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// A: Kaiming uniform with a = sqrt(5), as PEFT. B: zero.
    #[default]
    Kaiming,
    /// A: normal with standard deviation 1 / rank. B: zero.
    Gaussian,
    /// A and B: random matrices of halves of one orthogonal basis, so that B A is zero although both are not. Needs an even rank.
    Orthogonal,
    /// PiSSA (Meng et al. 2024, arXiv 2404.02948): the largest singular values and vectors of the weight, which is trained from there. Published as plain LoRA of twice the rank.
    Pissa,
    /// PiSSA by a randomised decomposition with 16 iterations: much faster for large weights, nearly the same values.
    PissaFast,
    /// EVA (Paischer et al. 2024, arXiv 2410.07170). A: the directions in which the layer's inputs vary most in the first training rows. B: zero.
    Eva,
    /// OLoRA (Büyükakyüz 2024, arXiv 2406.01775): the first columns and rows of the weight's QR decomposition. Published as plain LoRA of twice the rank.
    Olora,
    /// LoftQ (Li et al. 2023, arXiv 2310.08659), for a base that `model.quantize` quantises: B A is the best approximation of
    /// the error of the quantisation, so that training starts close to the model before it was quantised. The quantised weights
    /// themselves stay as they are, as with PEFT's `replace_lora_weights_loftq`. The adapter belongs to the quantised base.
    Loftq,
}

impl LoraInit {
    /// Returns true if B A is not zero at the start. The base must then be what is left of it: the initial factors are
    /// kept, and their product is subtracted.
    pub fn takes_from_base(self) -> bool {
        matches!(self, Self::Pissa | Self::PissaFast | Self::Olora)
    }

    /// Returns true if A and B are computed from the layer's weight.
    pub fn needs_weight(self) -> bool {
        self.takes_from_base() || self == Self::Loftq
    }
}
