//! The recipe's `optim` section: update rule, learning rates, clipping, averaging and number format of the weights.

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
    /// Peak learning rate. Left out: 2e-4 for LoRA, more for adapters with fewer parameters (docs/adapters.md, docs/virtual-tokens.md), 2e-5 for full fine-tuning, 6e-4 from random weights; a twentieth of that for preference methods (1e-5 and 1e-6), 3e-5 and 3e-6 for `ppo`; a fifth of that for `lion`. `sgd` has no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: Option<f64>,
    /// Weight decay: `p -= lr * weight_decay * p`; for `sgd`, the L2 term of the loss.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Also apply weight decay to norms and biases; the default `false` is that of transformers' Trainer.
    pub decay_norms: bool,
    /// Decay of the first and second moment in the rules of the AdamW family.
    pub betas: [f64; 2],
    /// Term added to the denominator in the rules of the AdamW family.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Other learning rates or weight decays for parameters by name, such as `- { match: lora_B, lr: 4e-4, weight_decay: 0 }`. `match` is a regular expression that may match anywhere in the name; the first group that matches applies; the schedule scales all rates alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
    /// Length of the warm-up: below 1 a share of all steps, from 1 on a number of steps.
    #[schemars(range(min = 0.0))]
    pub warmup: f64,
    /// How the learning rate falls after the warm-up; `kind: schedule_free` stays at the peak.
    pub schedule: Schedule,
    /// Learning rate at the end of the schedule, as a share of the peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub floor: f64,
    /// For `schedule: wsd`, the share of all steps during which the learning rate falls.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay: f64,
    /// Gradient clipping: gradients are scaled down to this common norm; 0 turns clipping off. The norm is logged in any case.
    #[schemars(range(min = 0.0))]
    pub max_norm: f64,
    /// What to do if the loss or a gradient is not finite.
    pub non_finite: NonFinite,
    /// Exponential moving average of the trained weights with this decay (such as 0.999; step t uses at most `(1 + t) / (10 + t)`). The averaged weights are validated and become the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.9999999))]
    pub ema: Option<f64>,
    /// NEFTune (arXiv 2310.05914): uniform noise of size `neftune / sqrt(length * width)` on the input embeddings during training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub neftune: Option<f64>,
    /// Models with experts: coefficient of the term of the loss that balances how many tokens each expert gets (arXiv 2101.03961). Left out: `router_aux_loss_coef` of config.json if the routers are trained, else 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub router_balance: Option<f64>,
    /// Models with experts: coefficient of the router z-loss (arXiv 2202.08906), which keeps the logits of routers small; 1e-3 is usual. Left out: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub router_z: Option<f64>,
    /// Recurrent models: truncated backpropagation through time. Gradients do not flow from token n `truncate` of a sequence to the tokens before it, for every n, so that none flows back over more tokens than this; states do go on. Left out: they flow to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub truncate: Option<u64>,
    /// The number format of the weights that full fine-tuning trains; adapters are always float32.
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
            router_balance: None,
            router_z: None,
            truncate: None,
            master: Master::F32,
        }
    }
}

/// Update rules.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimKind {
    /// AdamW (arXiv 1711.05101): 8 bytes of state per parameter.
    #[default]
    Adamw,
    /// AdamW with moments in 8 bits (arXiv 2110.02861): 2 bytes of state per parameter.
    Adamw8(Adamw8Spec),
    /// Adafactor (arXiv 1804.04235): a matrix has one number of state per row and per column.
    Adafactor(AdafactorSpec),
    /// Lion (arXiv 2302.06675): every update has the size of the learning rate; 4 bytes of state per parameter. Needs a lower learning rate and more weight decay.
    Lion(LionSpec),
    /// Muon: orthogonalised momentum for the matrices of linear layers and adapters, AdamW for the rest.
    Muon(MuonSpec),
    /// Schedule-free AdamW (arXiv 2405.15682): no schedule after the warm-up; averaged weights are the result.
    ScheduleFree,
    /// Stochastic gradient descent with momentum.
    Sgd(SgdSpec),
}

impl OptimKind {
    /// Returns true if the rule uses `optim.betas` and `optim.eps`.
    pub fn is_adam(&self) -> bool {
        matches!(self, Self::Adamw | Self::Adamw8(_) | Self::Muon(_) | Self::ScheduleFree)
    }
}

/// 8-bit AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adamw8Spec {
    /// Number of values that share a scale, a power of two: 256 as in bitsandbytes today, 2048 as in the paper.
    #[schemars(range(min = 16, max = 65536))]
    pub block: u32,
}

impl Default for Adamw8Spec {
    fn default() -> Self {
        Self { block: 256 }
    }
}

/// Adafactor with an explicit learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorSpec {
    /// The second moment's decay at step t is `1 - t^(-decay_rate)`.
    #[schemars(range(min = 0.0))]
    pub decay_rate: f64,
    /// The update of a parameter is scaled down to this root mean square.
    #[schemars(range(min = 0.000001))]
    pub clip: f64,
    /// Decay of the first moment; left out, there is no first moment, which saves 4 bytes per parameter.
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
    /// Decay in the interpolation whose sign is the update, and decay of the momentum.
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
    /// The size of the updates of a matrix.
    pub scale: MuonScale,
}

impl Default for MuonSpec {
    fn default() -> Self {
        Self { momentum: 0.95, nesterov: true, scale: MuonScale::MatchRms }
    }
}

/// Sizes of Muon's updates of a matrix (N, M).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// `0.2 sqrt(max(N, M))` (arXiv 2502.16982): as large as AdamW's, so that AdamW's learning rates can be used.
    MatchRms,
    /// `sqrt(max(1, N / M))`, as first published; needs learning rates of about 0.02.
    Original,
}

/// Stochastic gradient descent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdSpec {
    /// Momentum; with 0 there is no state.
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

/// Settings for parameters by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// A regular expression that may match anywhere in the parameter's name.
    #[schemars(extend("format" = "regex"))]
    pub r#match: String,
    /// Peak learning rate of these parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: Option<f64>,
    /// Weight decay of these parameters, including norms and biases.
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

/// What to do if the loss or a gradient is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// Stop the run; the last checkpoint is kept.
    Error,
    /// Skip the update of that step; ten such steps in a row stop the run.
    Skip,
}

/// The number format of the weights that full fine-tuning trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Master {
    /// float32: exact updates; 4 bytes per parameter for the weight and 4 for the gradient.
    F32,
    /// bfloat16 weights and gradients, 2 bytes each; updates are rounded up or down at random, so that small ones still have an effect on average.
    StochasticRounding,
}
