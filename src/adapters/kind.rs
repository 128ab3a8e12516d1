//! The interface of the kinds of adapters ([`AdapterKind`]): everything that follows from a kind's settings, so that
//! the rest of ft need not distinguish kinds.
//!
//! How a kind computes is `nn::Adapter`, which its [`plan`](AdapterKind::plan) attaches to layers. A new kind is a
//! folder (or file) with its settings and one implementation of each of the two traits, a variant of
//! [`AdapterSpec`](super::AdapterSpec), and its `peft_type` in [`file`](super::file). What kinds have in common is beside them: which
//! modules are adapted (`targets`), modules trained in full (`saved_module`), base weights in files (`base_layer`), the
//! folder of an adapter (`file`), its common keys (`peft`), and merging (`merge`, by the [`WeightUpdate`] of each
//! module).

use super::targets::ModuleSelection;
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::AdapterPlan;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

/// Name of the module that is a reward model's scalar head, in every family.
pub const SCORE: &str = "score";

/// What an adapter adds to the activations that a layer keeps for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdapterActivations {
    /// Width of the low-rank results of one linear layer.
    pub rank: u64,
    /// True if each linear layer keeps a dropout mask and a masked input.
    pub dropout: bool,
}

/// A kind of adapter, as its settings describe it.
pub trait AdapterKind {
    /// Returns the name of the kind's section in a recipe, such as `lora`.
    fn name(&self) -> &'static str;

    /// Returns the name of the kind in texts, such as `LoRA`.
    fn title(&self) -> &'static str;

    /// Returns a short description, such as `lora r16`.
    fn describe(&self) -> String;

    /// Returns the plan that attaches this adapter while a model is built; `start` has the tensors of the adapter that
    /// it continues. Fails for invalid patterns.
    fn plan_from(&self, start: Option<&BTreeMap<String, Tensor>>) -> Result<Box<dyn AdapterPlan>>;

    /// Returns the plan that attaches an adapter from disk: these are the settings in its `config`. It may name modules
    /// that the model lacks. Fails for invalid patterns.
    fn plan_of_file(&self, config: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Box<dyn AdapterPlan>>;

    /// Returns the folder of the adapter that training continues; `None` for a new adapter.
    fn continues(&self) -> Option<&Path>;

    /// Returns the settings that must be equal in an adapter and the one that it continues, by their keys in a recipe.
    fn fixed_settings(&self) -> Vec<(&'static str, Value)>;

    /// Returns the probability with which inputs are dropped in training; 0: none.
    fn dropout(&self) -> f64;

    /// Sets the probability with which inputs are dropped in training.
    fn set_dropout(&mut self, probability: f64);

    /// Returns what the adapter adds to the activations of a layer, for the prediction of memory.
    fn activations(&self) -> AdapterActivations;

    /// Returns the rules that select modules. Fails for invalid patterns.
    fn selection(&self) -> Result<ModuleSelection>;

    /// Returns the modules that are trained in full and saved with the adapter, by name or name ending.
    fn modules_to_save(&self) -> &[String];

    /// Adds a module to those that are trained in full.
    fn save_module(&mut self, module: &str);

    /// Returns true if the targets are a list of names and nothing is excluded.
    fn has_named_targets(&self) -> bool;

    /// Sets whether the adapted weights are stored as (in, out), which PEFT's files contain.
    fn set_transposed(&mut self, transposed: bool);

    /// Replaces the rules for targets by these names.
    fn set_named_targets(&mut self, names: Vec<String>);

    /// Returns the content of PEFT's adapter_config.json; `base` is the path or id of the base.
    fn config(&self, base: &str) -> Value;

    /// Returns what the names of the kind's parameters begin with in PEFT's files, such as `lora_`.
    fn tensor_prefix(&self) -> &'static str;

    /// Returns the names of the kind's parameters, for errors.
    fn tensor_names(&self) -> &'static [&'static str];

    /// Returns the module that a tensor of the adapter's file updates; `None` for base weights and modules that are
    /// trained in full.
    fn module_of<'n>(&self, tensor: &'n str) -> Option<&'n str>;

    /// Returns the updates of `modules` from the tensors of the file `origin`. Fails for missing tensors and wrong
    /// shapes.
    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>>;

    /// Returns true if the adapter contains a scalar head, as that of a reward or value model does.
    fn has_scalar_head(&self) -> bool {
        self.modules_to_save().iter().any(|m| m == SCORE)
    }

    /// Adds the scalar head to the modules that are trained and saved with the adapter, if it is not among them.
    fn add_scalar_head(&mut self) {
        if !self.has_scalar_head() {
            self.save_module(SCORE);
        }
    }
}
