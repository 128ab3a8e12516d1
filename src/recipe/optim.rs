//! The recipe's `optim` section: the update rule, learning rates, and what is done to weights and gradients.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Optimiser, learning rate and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSection {
    /// The update rule.
    #[serde(with = "serde_yaml::with::singleton_map")]
    #[schemars(with = "OptimKind")]
    pub kind: OptimKind,
    /// Peak learning rate; left out, 2e-4 for adapters, 2e-5 for full fine-tuning, 6e-4 from random weights; a twentieth of it for methods that learn from preferences (1e-5 and 1e-6), a fifth for `lion`; `sgd` has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: Option<f64>,
    /// Weight decay: `p -= lr * weight_decay * p`; for `sgd`, the L2 term of the loss.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Also decay norms and biases; left out they are not decayed, as in transformers' Trainer.
    pub decay_norms: bool,
    /// First and second moment decay of the rules of the AdamW family.
    pub betas: [f64; 2],
    /// Term added to the denominator by the rules of the AdamW family.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Another learning rate or weight decay by parameter name: `- { match: lora_B, lr: 4e-4, weight_decay: 0 }`. `match` is a regular expression that is found anywhere in the name; the first that matches counts; the schedule scales every rate alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
    /// Below 1 a share of all steps, from 1 on a number of steps.
    #[schemars(range(min = 0.0))]
    pub warmup: f64,
    /// How the learning rate goes down after the warm-up; `schedule_free` stays at the peak.
    pub schedule: Schedule,
    /// Where the schedule ends, as a share of the peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    /// For `wsd`, the share of all steps in which the learning rate goes down.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay: f64,
    /// Gradients are scaled down to this norm; 0 turns clipping off, the norm is logged either way.
    #[schemars(range(min = 0.0))]
    pub max_norm: f64,
    /// What happens when the loss or a gradient is not finite.
    pub non_finite: NonFinite,
    /// Average the trained weights over time with this decay (such as 0.999; step t uses at most `(1 + t) / (10 + t)`); the average is what is validated and what becomes the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.9999999))]
    pub ema: Option<f64>,
    /// NEFTune (arXiv 2310.05914): uniform noise of size `neftune / sqrt(length * width)` on the input embeddings while training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub neftune: Option<f64>,
    /// The number format in which full fine-tuning holds what it trains; adapters are always float32.
    pub master: Master,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            kind: OptimKind::Adamw,
            lr: None,
            weight_decay: 0.0,
            decay_norms: false,
            betas: [0.9, 0.999],
            eps: 1e-8,
            groups: Vec::new(),
            warmup: 0.03,
            schedule: Schedule::Cosine,
            floor: 0.0,
            decay: 0.2,
            max_norm: 1.0,
            non_finite: NonFinite::Error,
            ema: None,
            neftune: None,
            master: Master::F32,
        }
    }
}

/// Update rules.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimKind {
    /// AdamW (arXiv 1711.05101): 8 bytes of state a parameter.
    #[default]
    Adamw,
    /// AdamW with moments in 8 bits (arXiv 2110.02861): 2 bytes of state a parameter.
    Adamw8(Adamw8Spec),
    /// Adafactor (arXiv 1804.04235): a matrix keeps one number a row and a column.
    Adafactor(AdafactorSpec),
    /// Lion (arXiv 2302.06675): steps of one size, 4 bytes of state a parameter; wants a lower rate and more decay.
    Lion(LionSpec),
    /// Muon: orthogonalised momentum for the matrices of linear layers and adapters, AdamW for the rest.
    Muon(MuonSpec),
    /// Schedule-free AdamW (arXiv 2405.15682): no schedule after the warm-up; the averaged weights are the result.
    ScheduleFree,
    /// Stochastic gradient descent with momentum.
    Sgd(SgdSpec),
}

impl OptimKind {
    /// Reads `optim.betas` and `optim.eps`.
    pub fn is_adam(&self) -> bool {
        matches!(self, Self::Adamw | Self::Adamw8(_) | Self::Muon(_) | Self::ScheduleFree)
    }
}

/// 8-bit AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adamw8Spec {
    /// Numbers that share a scale, a power of two: 256 as in bitsandbytes today, 2048 as in the paper.
    #[schemars(range(min = 16, max = 65536))]
    pub block: u32,
}

impl Default for Adamw8Spec {
    fn default() -> Self {
        Self { block: 256 }
    }
}

/// Adafactor with a given learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorSpec {
    /// The second moment's decay at step t is `1 - t^(-decay_rate)`.
    #[schemars(range(min = 0.0))]
    pub decay_rate: f64,
    /// A parameter's update is scaled down to this root mean square.
    #[schemars(range(min = 0.000001))]
    pub clip: f64,
    /// First-moment decay; left out there is none, which saves 4 bytes a parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.9999999))]
    pub momentum: Option<f64>,
    /// Scale the learning rate by each parameter's root mean square.
    pub scale_parameter: bool,
}

impl Default for AdafactorSpec {
    fn default() -> Self {
        Self { decay_rate: 0.8, clip: 1.0, momentum: None, scale_parameter: false }
    }
}

/// Lion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LionSpec {
    /// Decay of the interpolation whose sign is taken, and of the momentum.
    pub betas: [f64; 2],
}

impl Default for LionSpec {
    fn default() -> Self {
        Self { betas: [0.9, 0.99] }
    }
}

/// Muon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MuonSpec {
    /// Momentum of matrices.
    #[schemars(range(min = 0.0, max = 0.9999999))]
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// The size of a matrix's step.
    pub scale: MuonScale,
}

impl Default for MuonSpec {
    fn default() -> Self {
        Self { momentum: 0.95, nesterov: true, scale: MuonScale::MatchRms }
    }
}

/// Sizes of Muon's steps for a matrix (N, M).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// `0.2 sqrt(max(N, M))` (arXiv 2502.16982): as large as AdamW's, so that AdamW's learning rates serve.
    MatchRms,
    /// `sqrt(max(1, N / M))`, as first published; wants rates of about 0.02.
    Original,
}

/// Stochastic gradient descent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdSpec {
    /// Momentum; 0 keeps no state.
    #[schemars(range(min = 0.0, max = 0.9999999))]
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
}

impl Default for SgdSpec {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false }
    }
}

/// Settings of parameters by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// A regular expression that is found anywhere in the parameter's name.
    #[schemars(extend("format" = "regex"))]
    pub r#match: String,
    /// Peak learning rate of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: Option<f64>,
    /// Weight decay of these, norms and biases among them too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub weight_decay: Option<f64>,
}

/// Learning-rate schedules after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// A straight line down to the floor.
    Linear,
    /// Half a cosine down to the floor.
    Cosine,
    /// Warm-up, stable, decay: stays at the peak, then a straight line to the floor over the last `decay` share.
    Wsd,
}

/// What happens when the loss or a gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// Stop, keeping the last checkpoint.
    Error,
    /// Leave that step out and count it; ten in a row stop the run.
    Skip,
}

/// How full fine-tuning holds the weights that it trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Master {
    /// float32: exact updates, 4 bytes a parameter beside the gradient's 4.
    F32,
    /// bfloat16 weights and gradients, 2 bytes each; updates are rounded up or down by chance, so that small ones are not lost.
    StochasticRounding,
}
