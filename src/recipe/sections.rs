//! The recipe as it is written: one struct a section, one doc comment a key.
//!
//! The doc comments are the reference: `ft recipe explain`, the JSON Schema and docs/recipe.md are made from them.
//! Choices are externally tagged (`method: { sft: {} }`), every section denies unknown keys.

use crate::adapters::AdapterSpec;
pub use crate::data::{Overflow, RowFormat, SourceSpec as SourceSection};
use crate::methods::MethodSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model.
    pub model: ModelSection,
    /// What is learnt, and from which kind of data.
    #[serde(with = "serde_yaml::with::singleton_map")]
    #[schemars(with = "MethodSpec")]
    pub method: MethodSpec,
    /// The adapter to train; left out, every weight is trained (full fine-tuning).
    #[serde(default, with = "serde_yaml::with::singleton_map", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AdapterSpec>")]
    pub adapter: Option<AdapterSpec>,
    /// Training and validation rows.
    pub data: DataSection,
    /// How rows are packed and how many make an optimiser step.
    #[serde(default)]
    pub batch: BatchSection,
    /// Optimiser, learning rate and its schedule.
    #[serde(default)]
    pub optim: OptimSection,
    /// Length, rhythm, seed and place of the run.
    pub run: RunSection,
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face model directory: config.json, safetensors, tokenizer.json.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// The number format of the weights and of the arithmetic.
    #[serde(default)]
    pub dtype: Dtype,
    /// Where to run: `auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "auto")]
    #[schemars(regex(pattern = r"^(auto|cpu|cuda(:[0-9]+)?)$"))]
    pub device: String,
}

/// Number formats a model can be trained in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// bfloat16: half the memory; adapters and optimiser state stay in float32.
    #[default]
    Bf16,
    /// float32: twice the memory of bf16, for reference numbers.
    F32,
}

/// Training and validation rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Rows to learn from.
    pub train: SourceSection,
    /// Rows that are only measured; needed for the best checkpoint and for early stopping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<SourceSection>,
    /// What happens to a row longer than `batch.max_len`.
    #[serde(default)]
    pub on_overflow: Overflow,
    /// With `on_overflow: error`, the share of rows over `batch.max_len` that is dropped (and reported) before it is an error.
    #[serde(default = "overflow_tolerance")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub overflow_tolerance: f64,
    /// Draw the rows in a new order every epoch.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// A Jinja chat template to use instead of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub template: Option<PathBuf>,
}

/// How rows are packed and how many make an optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSection {
    /// Tokens in one packed row: examples are laid end to end, attention never crosses from one to the next.
    #[schemars(range(min = 1))]
    pub tokens: usize,
    /// The longest example, in tokens.
    #[schemars(range(min = 2))]
    pub max_len: usize,
    /// Packed rows per optimiser step (gradient accumulation). Give this or `examples`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub accumulate: Option<usize>,
    /// Examples per optimiser step, in as many packed rows as `tokens` asks for. Give this or `accumulate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub examples: Option<usize>,
}

impl Default for BatchSection {
    fn default() -> Self {
        Self { tokens: 4096, max_len: 1024, accumulate: None, examples: None }
    }
}

/// Optimiser, learning rate and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSection {
    /// Peak learning rate; left out, 2e-4 for adapters and 2e-5 for full fine-tuning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lr: Option<f64>,
    /// Decoupled weight decay of AdamW.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Also decay norms and biases.
    pub decay_norms: bool,
    /// First and second moment decay.
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[schemars(range(min = 0.0))]
    pub eps: f64,
    /// Below 1 a share of all steps, from 1 on a number of steps.
    #[schemars(range(min = 0.0))]
    pub warmup: f64,
    /// How the learning rate goes down after the warm-up.
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
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            lr: None,
            weight_decay: 0.0,
            decay_norms: false,
            betas: [0.9, 0.999],
            eps: 1e-8,
            warmup: 0.03,
            schedule: Schedule::Cosine,
            floor: 0.0,
            decay: 0.2,
            max_norm: 1.0,
            non_finite: NonFinite::Error,
        }
    }
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

/// Length, rhythm, seed and place of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// The folder for the result, its checkpoints and its metrics.
    #[schemars(extend("format" = "path"))]
    pub out: PathBuf,
    /// Passes over the training rows.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub epochs: f64,
    /// Optimiser steps; where given, `epochs` is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub steps: Option<u64>,
    /// Measure the validation rows every so many steps (and at the end); 0: only at the end.
    #[serde(default)]
    pub eval_every: u64,
    /// Save a checkpoint every so many steps (and at the end); 0: only at the end.
    #[serde(default)]
    pub save_every: u64,
    /// How many checkpoints to keep beside the best.
    #[serde(default = "two")]
    #[schemars(range(min = 1))]
    pub keep: usize,
    /// Stop after so many validations without a better loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub patience: Option<u32>,
    /// Which weights become the result.
    #[serde(default)]
    pub result: ResultChoice,
    /// Seed of every random choice.
    #[serde(default = "seed")]
    pub seed: u64,
    /// Recompute layers in the backward pass instead of keeping their insides: less memory, about a third more time.
    #[serde(default)]
    pub replay: ReplayChoice,
    /// Measure the validation rows before the first step, too: what the base knows already.
    #[serde(default = "yes")]
    pub eval_at_start: bool,
    /// Answer so many validation prompts (training prompts where there are no validation rows) before the first step,
    /// at every validation and at the end; 0: none.
    #[serde(default = "two")]
    pub samples: usize,
    /// CPU threads; left out, all physical cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub threads: Option<usize>,
}

/// Which weights become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResultChoice {
    /// Those with the lowest validation loss; the last where there are no validation rows.
    #[default]
    Best,
    /// Those of the last step.
    Last,
}

/// Which layers are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayChoice {
    /// None: fastest.
    #[default]
    None,
    /// Every layer: least memory.
    All,
}

fn auto() -> String {
    "auto".into()
}
fn yes() -> bool {
    true
}
fn one() -> f64 {
    1.0
}
fn two() -> usize {
    2
}
fn seed() -> u64 {
    7
}
fn overflow_tolerance() -> f64 {
    0.01
}
