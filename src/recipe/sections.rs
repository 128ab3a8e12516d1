//! The sections of a recipe: one struct per section, one field with its doc comment per key.
//!
//! The doc comments are the reference for users: `ft recipe explain`, the JSON Schema and docs/recipe.md are made from them.
//! Choices are externally tagged (`method: { sft: {} }`); every section denies unknown keys.

use super::optim::OptimSection;
use crate::adapters::AdapterSpec;
pub use crate::data::cache::CacheChoice;
use crate::data::chat::{NewTokens, TemplateOptions};
pub use crate::data::dataset::Overflow;
pub use crate::data::rows::{RowFormat, SourceList, SourceSpec as SourceSection};

use crate::error::{Error, Result};
use crate::methods::MethodSpec;
use crate::models::{Dtype, LayerReplay, Storage, TrainedPart};
use crate::nn::{BaseQuantisation, Quantisation, QuantisedFormat, TableFormat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A fine-tuning run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model.
    pub model: ModelSection,
    /// The training method. It determines the loss and the kind of data.
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
    /// Length, validation, checkpoints, seed and output folder of the run.
    pub run: RunSection,
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face model directory: config.json, safetensors, tokenizer.json (or tokenizer.model, or GPT-2's vocab.json and merges.txt).
    /// Or a GGUF file, which has all of it inside; adapters are trained over its quantised weights as they are.
    /// Not needed with `init: random`.
    #[serde(default)]
    #[schemars(extend("format" = "path", "default" = null))]
    pub path: PathBuf,
    /// A larger model to cut this one out of if `path` does not exist yet (as `ft student` does).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutSection>,
    /// Where the initial weights come from.
    #[serde(default)]
    pub init: ModelInit,
    /// With `init: random`, the model's shape: a config.json, or its keys written here (`model_type` and the sizes).
    /// If vocab_size is left out, it is the tokenizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ModelConfig>,
    /// With `init: random`, the directory of the tokenizer (`ft tokenizer train` makes one); left out, the directory of `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub tokenizer: Option<PathBuf>,
    /// The number format of the arithmetic. A resumed run keeps the format that it started with, also on another machine.
    #[serde(default)]
    pub dtype: Dtype,
    /// Which weights are trained if there is no `adapter`. The others are frozen: they take neither gradients nor
    /// optimiser state, and keep their numbers in the result.
    #[serde(default, with = "serde_yaml::with::singleton_map", skip_serializing_if = "TrainedPart::is_all")]
    #[schemars(with = "TrainedPart")]
    pub trained: TrainedPart,
    /// How frozen weights are held in memory. This affects memory and speed; results are the same, on a GPU up to rounding.
    #[serde(default)]
    pub storage: Storage,
    /// Quantises the frozen weights of the linear layers while they are read, so that a model takes a quarter or a half of
    /// the memory ("QLoRA"): adapters are trained over the quantised weights. Embeddings and output head (but see
    /// `quantize_embeddings`), norms and everything that is trained keep their format. Left out, nothing is quantised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<QuantisedFormat>,
    /// With `quantize: nf4` or `fp4`, stores the scales of the blocks in 8 bits instead of 32: 0.516 instead of 0.563 bytes
    /// a parameter. Left out: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub double_quantize: Option<bool>,
    /// With `quantize`, also quantises the tables of tokens and the output head, with a scale for each token: 1 byte a
    /// parameter. Only the rows that are looked up are dequantised. No adapter can adapt or train such a table as a whole;
    /// `token_rows` and `trainable_tokens` can. Left out, they keep their format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize_embeddings: Option<TableFormat>,
    /// Tokens that are added to the tokenizer and to the model, such as markers for tools. Their rows are trained with all
    /// other weights, or beside an adapter: `lora` and `trainable_tokens` train just these rows by themselves, unless they
    /// adapt or save the embedding. The result has the tokenizer with the new tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tokens: Option<NewTokens>,
    /// Where to run: `auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "auto")]
    #[schemars(regex(pattern = r"^(auto|cpu|cuda(:[0-9]+)?)$"))]
    pub device: String,
}

impl ModelSection {
    /// Returns how the frozen weights are quantised; `None` if they are not.
    pub fn quantisation(&self) -> Option<BaseQuantisation> {
        let linear = Quantisation::new(self.quantize?, self.double_quantize.unwrap_or(true));
        Some(BaseQuantisation { linear, embeddings: self.quantize_embeddings })
    }

    /// Returns true if training begins from random weights.
    pub fn is_random(&self) -> bool {
        self.init == ModelInit::Random
    }
}

/// A student cut out of a larger model. Of `layers`, `mlp` and `heads`, those left out keep their size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CutSection {
    /// The Hugging Face directory of the larger model.
    #[schemars(extend("format" = "path"))]
    pub from: PathBuf,
    /// How many layers to keep, or a list of their numbers, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<CutLayers>,
    /// How the layers are chosen if `layers` is a number.
    #[serde(default)]
    pub choose: CutChoice,
    /// Neurons of each MLP to keep: those with the largest activations on the training rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub mlp: Option<i64>,
    /// Query heads of each layer to keep, with the key/value heads that they use, chosen in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub heads: Option<i64>,
    /// Number of training rows on which activations are measured.
    #[serde(default = "calibration")]
    #[schemars(range(min = 1))]
    pub rows: usize,
}

/// Layers to keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)] // leaves only: a number or a list of numbers
pub enum CutLayers {
    /// This number of layers.
    Count(#[schemars(range(min = 1))] usize),
    /// These layers.
    List(#[schemars(length(min = 1))] Vec<usize>),
}

/// How layers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutChoice {
    /// Evenly spread, including the first and the last.
    #[default]
    Even,
    /// Removes the block of consecutive layers with the smallest angle between its input and its output (Gromov et al. 2024,
    /// arXiv 2403.17887).
    Angular,
}

/// Where the initial weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelInit {
    /// From the model directory or GGUF file.
    #[default]
    Pretrained,
    /// Random numbers, as in transformers (normal, `initializer_range`): pre-training from scratch.
    Random,
}

/// The shape of a model with random weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)] // leaves only: a path, or keys whose names are config.json's
pub enum ModelConfig {
    /// A config.json.
    File(#[schemars(extend("format" = "path"))] PathBuf),
    /// Keys of config.json.
    Keys(
        #[schemars(extend("additionalProperties" = {"anyOf": [
            {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "string"},
            {"type": "object", "additionalProperties": {"anyOf": [
                {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "string"}
            ]}}
        ]}))]
        serde_json::Map<String, serde_json::Value>,
    ),
}

/// Training and validation rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Rows to train on: one source, or a list of them.
    pub train: SourceList,
    /// Rows for validation: one source, or a list of them. Needed to choose the best checkpoint and for early stopping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<SourceList>,
    /// What to do with a row longer than `batch.max_len`.
    #[serde(default)]
    pub on_overflow: Overflow,
    /// With `on_overflow: error`, the share of rows longer than `batch.max_len` that may be dropped (and reported) before it is an error.
    #[serde(default = "overflow_tolerance")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub overflow_tolerance: f64,
    /// Use the rows in a new random order every epoch.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// A Jinja chat template to use instead of the model's own: a file (with a `/` or a `.` in its name), or the name of one of the model's templates if it has several. Left out, rows with tools use the template `tool_use` if there is one, all other rows `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path", "named" = true))]
    pub template: Option<PathBuf>,
    /// Variables of the chat template for every row, such as `{ enable_thinking: false }`; a row's own `chat_template_kwargs` take precedence.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(extend("additionalProperties" = {"anyOf": [
        {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "string"}
    ]}))]
    pub chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// The date for chat templates that ask for one (`strftime_now`), such as `2026-11-28`. Left out, the day on which the run starts; a resumed run keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"))]
    pub date: Option<String>,
    /// Where token ids are cached between runs: `true`, in the user's cache folder (for files of 16 MiB or more); `false`, nowhere; or a folder (for files of any size).
    #[serde(default, skip_serializing_if = "CacheChoice::is_auto")]
    pub cache: CacheChoice,
}

/// How rows are packed and how many make an optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSection {
    /// Maximum number of tokens in one packed row. A row contains several examples; attention never crosses from one to the next.
    #[schemars(range(min = 1))]
    pub tokens: usize,
    /// Maximum number of tokens of an example.
    #[schemars(range(min = 2))]
    pub max_len: usize,
    /// Packed rows per optimiser step (gradient accumulation). Give this or `examples`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub accumulate: Option<usize>,
    /// Examples per optimiser step, in as many packed rows as `tokens` requires. Give this or `accumulate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub examples: Option<usize>,
}

impl DataSection {
    /// Returns how conversations are rendered: template, its variables and the date.
    pub fn rendering(&self) -> Result<TemplateOptions> {
        let read = |date: &String| {
            date.parse().map_err(|e| {
                Error::user(format!("data.date: `{date}` is not a date: {e}")).hint("write it as 2026-11-28")
            })
        };
        let date = self.date.as_ref().map(read).transpose()?;
        Ok(TemplateOptions { template: self.template.clone(), kwargs: self.chat_template_kwargs.clone(), date })
    }
}

impl Default for BatchSection {
    fn default() -> Self {
        Self { tokens: 4096, max_len: 1024, accumulate: None, examples: None }
    }
}

/// Length, validation, checkpoints, seed and output folder of the run.
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
    /// Optimiser steps; if given, `epochs` is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub steps: Option<u64>,
    /// Validate every N steps and at the end; 0: only at the end.
    #[serde(default)]
    pub eval_every: u64,
    /// Save a checkpoint every N steps and at the end; 0: only at the end.
    #[serde(default)]
    pub save_every: u64,
    /// How many of the latest checkpoints to keep. The best is kept in addition.
    #[serde(default = "two")]
    #[schemars(range(min = 1))]
    pub keep: usize,
    /// Stop early after this number of validations without improvement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub patience: Option<u32>,
    /// Which weights become the result.
    #[serde(default)]
    #[serde(with = "serde_yaml::with::singleton_map")]
    #[schemars(with = "ResultChoice")]
    pub result: ResultChoice,
    /// Random seed for everything in the run.
    #[serde(default = "seed")]
    pub seed: u64,
    /// Recompute layers in the backward pass instead of keeping their activations: less memory, about a third more time.
    #[serde(default)]
    #[serde(with = "serde_yaml::with::singleton_map")]
    #[schemars(with = "ReplayChoice")]
    pub replay: ReplayChoice,
    /// Compute the MLP of each layer for this number of tokens of a packed row at a time, and again in the backward pass: what
    /// is inside an MLP then takes memory for these tokens alone, which matters in long rows. Costs one more forward pass
    /// through the MLPs; `--fit` chooses it where that is fewer operations than `replay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub mlp_tile: Option<usize>,
    /// On a GPU: keep the inputs of the layers that `replay` recomputes in the host's page-locked memory, where they are copied
    /// while the GPU computes. The result has the same bits. `--fit` chooses it where recomputing every layer is not enough.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
    /// Also measure the validation rows before the first step.
    #[serde(default = "yes")]
    pub eval_at_start: bool,
    /// A suite (as for `ft eval SUITE`) that is asked when the run has ended: of the model as it was before the training, and of the
    /// result. Both results are in the folder `evaluation` of the run. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub evaluate: Option<PathBuf>,
    /// Recurrent models: measure every N steps, from the first on, how much the loss at a token depends on the states 1, 2, 4, …
    /// tokens before it (metrics `state_gradient_1`, …, and a chart). Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub reach_every: Option<u64>,
    /// Number of validation prompts (without validation rows, training prompts) that the model answers before the first step,
    /// at every validation and at the end; 0: none.
    #[serde(default = "two")]
    pub samples: usize,
    /// Compute with the same bits each time on the same GPU (the CPU always does). Sums without a fixed order get one: the
    /// gradients of attention, of embeddings and of selected rows become slower. The run fails at an operation that has
    /// no such way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// Multiply float32 matrices in the TF32 units of a GPU (from compute capability 8.0), for which their factors are
    /// rounded to 10 bits of mantissa, as many as float16 has. bf16 and f16 runs multiply almost nothing in float32.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
    /// On a GPU: record passes whose operations are always the same as CUDA graphs, and launch each as one, so that the host keeps
    /// up with the GPU where a model is small. With `sft`, these are forward and backward of the packed rows, which are padded so that
    /// their lengths return (to a multiple of 32 to 256 tokens; the padding changes no result but for rounding); with `grpo`, `rloo` and `ppo`
    /// the steps of the answers that are sampled. Costs memory: what recorded passes take is not used for anything else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cuda_graphs: bool,
    /// CPU threads; left out, all physical cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub threads: Option<usize>,
}

/// Which weights become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResultChoice {
    /// The weights with the best validation; without validation rows, those of the last step.
    #[default]
    Best,
    /// The weights of the last step.
    Last,
    /// The mean of this number of checkpoints, such as `{ average: 5 }`: the last ones that `save_every` saves, that of the last
    /// step included. Takes no memory; these checkpoints are kept besides those of `keep`.
    Average(#[schemars(range(min = 2))] usize),
}

impl ResultChoice {
    /// Returns the number of checkpoints that are averaged, if the result is their mean.
    pub fn averaged(self) -> Option<usize> {
        match self {
            Self::Average(count) => Some(count),
            Self::Best | Self::Last => None,
        }
    }
}

/// Which layers are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayChoice {
    /// No layer: fastest.
    #[default]
    None,
    /// This number of layers from the first on, such as `{ layers: 12 }`; `ft train --fit` finds the number that is needed.
    Layers(#[schemars(range(min = 1))] usize),
    /// Every layer: least memory.
    All,
}

impl From<ReplayChoice> for LayerReplay {
    fn from(choice: ReplayChoice) -> Self {
        match choice {
            ReplayChoice::None => Self::None,
            ReplayChoice::Layers(n) => Self::First(n),
            ReplayChoice::All => Self::All,
        }
    }
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
fn calibration() -> usize {
    64
}

fn overflow_tolerance() -> f64 {
    0.01
}
