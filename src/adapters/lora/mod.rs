//! Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = W x + s B A dropout(x)`.
//!
//! A (R, in) and B (out, R) are float32 masters; products run in the dtype of x. `s` is alpha / R, or
//! alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

mod layer;
mod modules;
mod peft;
mod plan;
mod spec;
mod tensors;

pub use modules::{LoraModules, scale};
pub use plan::LoraPlan;
pub use spec::{LoraInit, LoraSpec, MAX_RANK};
pub use tensors::{adapted_module, second_factor};

pub(super) use peft::read as read_config;
pub(super) use tensors::factors;

use super::kind::{AdapterActivations, AdapterKind};
use super::targets::{ModuleSelection, Targets};
use super::update::WeightUpdate;
use crate::error::Result;
use crate::nn::AdapterPlan;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

impl AdapterKind for LoraSpec {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn title(&self) -> &'static str {
        "LoRA"
    }

    fn describe(&self) -> String {
        format!("lora r{}", self.rank)
    }

    fn plan_from(&self, start: Option<&BTreeMap<String, Tensor>>) -> Result<Box<dyn AdapterPlan>> {
        let plan = LoraPlan::new(self)?;
        Ok(Box::new(match start {
            Some(tensors) => plan.with_base_weights(tensors),
            None => plan,
        }))
    }

    fn plan_of_file(&self, config: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<Box<dyn AdapterPlan>> {
        Ok(Box::new(LoraPlan::of_file(self, config)?.with_base_weights(tensors)))
    }

    fn continues(&self) -> Option<&Path> {
        self.from.as_deref()
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("rank", json!(self.rank)),
            ("alpha", json!(self.alpha)),
            ("rslora", json!(self.rslora)),
            ("rank_pattern", json!(self.rank_pattern)),
            ("alpha_pattern", json!(self.alpha_pattern)),
        ]
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn set_dropout(&mut self, probability: f64) {
        self.dropout = probability;
    }

    fn activations(&self) -> AdapterActivations {
        AdapterActivations { rank: self.rank as u64, dropout: self.dropout > 0.0 }
    }

    fn selection(&self) -> Result<ModuleSelection> {
        Ok(LoraModules::new(self)?.selection)
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn save_module(&mut self, module: &str) {
        self.modules_to_save.push(module.into());
    }

    fn has_named_targets(&self) -> bool {
        matches!(self.targets, Targets::Names(_)) && self.exclude.is_none()
    }

    fn set_transposed(&mut self, transposed: bool) {
        self.fan_in_fan_out = transposed;
    }

    fn set_named_targets(&mut self, names: Vec<String>) {
        self.targets = Targets::Names(names);
        (self.exclude, self.layers, self.layers_pattern) = (None, None, Vec::new());
    }

    fn config(&self, base: &str) -> Value {
        peft::write(self, base)
    }

    fn tensor_prefix(&self) -> &'static str {
        "lora_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B"]
    }

    fn module_of<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        tensors::module_of(tensor)
    }

    fn updates(
        &self,
        modules: &BTreeSet<&str>,
        tensors: &BTreeMap<String, Tensor>,
        origin: &Path,
    ) -> Result<BTreeMap<String, Box<dyn WeightUpdate>>> {
        tensors::updates(self, modules, tensors, origin)
    }
}
