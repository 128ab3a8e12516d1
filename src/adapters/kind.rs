//! The interface of the kinds of adapters ([`AdapterKind`]): everything that follows from a kind's settings, so that
//! the rest of ft need not distinguish kinds.
//!
//! A new kind is a folder (or file) with its settings, an implementation of this trait, how it adapts one layer
//! ([`AdaptLayer`]) and how the layer then computes (`nn::Adapter`); a variant of [`AdapterSpec`](super::AdapterSpec);
//! and its `peft_type` in [`file`](super::file). What kinds have in common is beside them: the settings that select
//! modules (`module_settings`, `targets`), attaching them (`plan`), modules trained in full (`saved_module`), rows of
//! tokens trained in full (`token_rows`), base weights in files (`base_layer`), what PEFT's files have of embedding and
//! head besides (`vocabulary_tables`), the folder of an adapter (`file`), its common keys (`peft`), tensors computed from
//! parameters and kept while these do not change (`cached`), and merging (`merge`, by the [`WeightUpdate`] of each
//! tensor).

use super::module_settings::KindSection;
use super::plan::{AdaptLayer, ModulePlan};
use super::targets::{ModuleSelection, Targets};
use super::token_rows::{FindToken, TrainedRows};
use super::training::TrainingPart;
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::{AdapterPlan, ModelSizes, Param, Weights};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

/// Name of the module that is a reward model's scalar head, in every family.
pub const SCORE: &str = "score";

/// Name of its weight.
pub const SCORE_WEIGHT: &str = "score.weight";

/// What an adapter adds to the activations that a layer keeps for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdapterActivations {
    /// Width of the low-rank results of one linear layer.
    pub rank: u64,
    /// True if each linear layer keeps its outputs, which are then scaled.
    pub scaled_outputs: bool,
    /// True if each linear layer keeps a dropout mask and a masked input.
    pub dropout: bool,
    /// Virtual tokens that attention computes before each sequence.
    pub virtual_tokens: u64,
    /// Virtual tokens among them that every layer computes as it computes others.
    pub virtual_rows: u64,
}

/// Returns the tokens of a text.
pub type EncodeText<'a> = dyn Fn(&str) -> Result<Vec<u32>> + 'a;

/// Name of the module that is an output head with a weight of its own, in every family.
pub const HEAD: &str = "lm_head";

/// The names of the modules that embed tokens, in the families that there are.
pub const EMBEDDINGS: [&str; 4] = ["embed_tokens", "wte", "embed_in", "word_embeddings"];

/// What the adapter of one module takes in a training step, for the prediction of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModuleMemory {
    /// Numbers per token that are kept for the backward besides the input, in the dtype of the activations.
    pub kept: u64,
    /// True if the module's input is kept, which other modules may share.
    pub input: bool,
    /// Float32 numbers that are computed for the product or its backward and freed after it.
    pub temporary: u64,
}

/// A kind of adapter, as its settings describe it.
pub trait AdapterKind: KindSection {
    /// Returns the name of the kind in texts, such as `LoRA`.
    fn title(&self) -> &'static str;

    /// Returns a short description, such as `lora r16`.
    fn describe(&self) -> String;

    /// Returns how the adapter attaches to one layer. Fails for invalid patterns.
    fn layers(&self) -> Result<Box<dyn AdaptLayer>>;

    /// Returns the peak learning rate of supervised training that a recipe without one gets. Kinds with few parameters need
    /// larger steps.
    fn usual_lr(&self) -> f64 {
        2e-4
    }

    /// Returns the settings that must be equal in an adapter and the one that it continues, by their keys in a recipe.
    fn fixed_settings(&self) -> Vec<(&'static str, Value)>;

    /// Returns the probability with which inputs are dropped in training; 0: none.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// Sets the probability with which inputs are dropped in training. Does nothing for a kind without dropout.
    fn set_dropout(&mut self, _probability: f64) {}

    /// Returns why the adapter cannot be merged into weights; `None` if it can.
    fn why_not_merged(&self) -> Option<String> {
        None
    }

    /// Notes the sizes of the base, which the files of some kinds contain. Called before the settings are written.
    fn set_base_sizes(&mut self, _sizes: ModelSizes) {}

    /// Notes the tokens of the text that the adapter starts from, if its settings have one. Called before it is attached.
    fn start_from_text(&mut self, _encode: &EncodeText) -> Result<()> {
        Ok(())
    }

    /// Replaces tokens that the settings name by their text by their ids. Called before the settings are written. Fails for a
    /// text that is no token.
    fn resolve_tokens(&mut self, _find: &FindToken) -> Result<()> {
        Ok(())
    }

    /// Adds these rows of the embedding, and of an output head with a weight of its own, to those that are trained in full.
    /// Returns false for a kind that trains no single rows.
    fn train_token_rows(&mut self, _embedding: &[i64], _head: &[i64]) -> bool {
        false
    }

    /// Returns the tokens whose rows are trained in full.
    fn trained_rows(&self) -> Result<TrainedRows> {
        Ok(TrainedRows::default())
    }

    /// Returns true if the settings ask to adapt an embedding and an output head that share a weight as one.
    fn asks_to_tie(&self) -> bool {
        false
    }

    /// Returns true if what is trained of an embedding is that of an output head that shares its weight, too.
    fn ties_head(&self) -> bool {
        self.asks_to_tie()
    }

    /// Returns false if the gradient leaves out a part of the derivative on purpose.
    fn is_gradient_exact(&self) -> bool {
        true
    }

    /// Returns what the adapter adds to the activations of a layer, for the prediction of memory.
    fn activations(&self) -> AdapterActivations {
        AdapterActivations::default()
    }

    /// Returns what the adapter of one module takes in a step besides `activations`; `shape` is the module's: out, in.
    fn module_memory(&self, _module: &str, _shape: [u64; 2]) -> ModuleMemory {
        ModuleMemory::default()
    }

    /// Returns the reason why PEFT cannot read an adapter of these modules; `None` if it can.
    fn peft_refusal(&self, _modules: &BTreeSet<&str>) -> Option<String> {
        None
    }

    /// Returns the kind's part in a run of `steps` steps, which trains the adapter with these parameters; `None` for kinds
    /// that are trained like any other parameters. Fails for settings that do not fit the run's length.
    fn training(
        &self,
        _params: &mut dyn Iterator<Item = &Param>,
        _steps: u64,
    ) -> Result<Option<Box<dyn TrainingPart>>> {
        Ok(None)
    }

    /// Returns the tensors of a trained adapter as its file contains them, and changes the settings to those that belong to
    /// them.
    fn publish(&mut self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        tensors
    }

    /// Returns the content of PEFT's adapter_config.json; `base` is the path or id of the base.
    fn config(&self, base: &str) -> Value;

    /// Returns what the names of the kind's parameters begin with in PEFT's files, such as `lora_`.
    fn tensor_prefix(&self) -> &'static str;

    /// Returns the names of a module's parameters in the kind's files, such as `lora_A.weight`.
    fn tensor_names(&self) -> &'static [&'static str];

    /// Returns the names of the tensors in the kind's files that several modules share.
    fn shared_tensor_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Does the same as `updates`, for a kind whose tensors mean something on a base with these weights only.
    fn updates_on(
        &self,
        _base: &Weights,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        self.updates(modules, tensors, origin)
    }

    /// Returns true for a tensor of the kind's files that belongs to no module that the rules select.
    fn is_unselected_tensor(&self, _tensor: &str) -> bool {
        false
    }

    /// Returns true if the first values correct the error of a quantised base: the adapter then belongs to the quantised
    /// weights, not to those that they were quantised from.
    fn corrects_quantisation(&self) -> bool {
        false
    }

    /// Returns the factors of the learning rate of parameters, by a part of their name.
    fn rate_factors(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Returns the changes of the base's tensors, by name, that the tensors of the file `origin` make in `modules`. Fails
    /// for missing tensors and wrong shapes.
    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>>;

    /// Returns the plan that attaches this adapter while a model is built; `start` has the tensors of the adapter that
    /// it continues. Fails for invalid patterns.
    fn plan_from(&self, start: Option<&BTreeMap<String, Tensor>>) -> Result<Box<dyn AdapterPlan>> {
        let plan = ModulePlan::new(self)?;
        Ok(Box::new(match start {
            Some(tensors) => plan.with_base_weights(tensors),
            None => plan,
        }))
    }

    /// Returns the plan that attaches an adapter from disk: these are the settings in its `config`. It may name modules
    /// that the model lacks. Fails for invalid patterns.
    fn plan_of_file(&self, config: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Box<dyn AdapterPlan>> {
        Ok(Box::new(ModulePlan::of_file(self, config)?.with_base_weights(tensors)))
    }

    /// Returns the rules that select modules, compiled. Fails for invalid patterns.
    fn selection(&self) -> Result<ModuleSelection> {
        ModuleSelection::new(self.rules())
    }

    /// Returns the module that a tensor of the adapter's file belongs to; `None` for base weights and modules that are
    /// trained in full.
    fn module_of<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        self.tensor_names().iter().find_map(|name| tensor.strip_suffix(name)?.strip_suffix('.'))
    }

    /// Returns the modules that are trained in full and saved with the adapter, by name or name ending.
    fn modules_to_save(&self) -> &[String] {
        self.rules().modules_to_save
    }

    /// Returns true if the targets are a list of names and nothing is excluded.
    fn has_named_targets(&self) -> bool {
        let rules = self.rules();
        matches!(rules.targets, Targets::Names(_)) && rules.exclude.is_none()
    }

    /// Sets whether the adapted weights are stored as (in, out), which PEFT's files contain.
    fn set_transposed(&mut self, transposed: bool) {
        *self.rules_mut().fan_in_fan_out = transposed;
    }

    /// Replaces the rules for targets by these names.
    fn set_named_targets(&mut self, names: Vec<String>) {
        let rules = self.rules_mut();
        *rules.targets = Targets::Names(names);
        (*rules.exclude, *rules.layers, *rules.layers_pattern) = (None, None, Vec::new());
    }

    /// Returns true if the adapter contains a scalar head, as that of a reward or value model does.
    fn has_scalar_head(&self) -> bool {
        self.modules_to_save().iter().any(|m| m == SCORE)
    }

    /// Adds the scalar head to the modules that are trained and saved with the adapter, if it is not among them.
    fn add_scalar_head(&mut self) {
        if !self.has_scalar_head() {
            self.rules_mut().modules_to_save.push(SCORE.into());
        }
    }
}
