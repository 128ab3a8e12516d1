//! What a method's model consists of besides the base and the trained adapter: heads, further adapters, frozen models.

use crate::adapters::AdapterSpec;
use crate::models::{Dtype, Heads};
use std::path::PathBuf;

/// The name of the adapter that a recipe trains.
pub const TRAINED_ADAPTER: &str = "default";

/// Describes what a method's model consists of, besides the base and the trained adapter.
#[derive(Debug, Default)]
pub struct ModelParts {
    /// Which heads the model has.
    pub heads: Heads,
    /// Adapters next to the trained one.
    pub extra_adapters: Vec<ExtraAdapter>,
    /// How many frozen copies of the base the method holds (as its reference model, or under a reward adapter).
    pub base_copies: u64,
    /// Sizes of other frozen models that the method holds (teachers, reward models): number of parameters and their dtype; `None`:
    /// the run's dtype.
    pub other_models: Vec<(u64, Option<Dtype>)>,
    /// How many float32 tables of logits one chunk of the loss holds at the same time.
    pub tables: u64,
    /// The answers that the method samples at a time; `None`: it samples none.
    pub sampled: Option<SampledAnswers>,
}

/// How many answers a method samples at a time, and how long they may be.
#[derive(Debug, Clone, Copy)]
pub struct SampledAnswers {
    /// Number of answers to all prompts of a round.
    pub count: u64,
    /// The most tokens of an answer.
    pub new_tokens: u64,
}

/// An adapter next to the trained one, on the same base.
#[derive(Debug, Clone)]
pub struct ExtraAdapter {
    /// The adapter's name in the model.
    pub name: &'static str,
    /// Its kind and layers.
    pub spec: AdapterSpec,
    /// The folder of its weights; `None`: newly initialised.
    pub folder: Option<PathBuf>,
    /// True if it is trained too, false if it is frozen.
    pub trained: bool,
}
