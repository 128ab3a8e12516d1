//! Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = W x + s B A dropout(x)`.
//!
//! A (R, in) and B (out, R) are float32 masters; products run in the dtype of x. `s` is alpha / R, or
//! alpha / sqrt(R) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
//!
//! spec: the settings. attach: how a layer gets its parameters, whose first values are in `initial`. layer, embedding:
//! how a linear layer and an embedding compute; dora: the same with trained magnitudes. eva: the directions of a layer's
//! inputs; distribution: ranks by them. peft, target_parameters, fused, stacked, tensors: PEFT's files. updates: merging. publish: adapters
//! whose files differ from what is trained.

mod attach;
mod distribution;
mod dora;
mod embedding;
mod eva;
mod fused;
mod initial;
mod layer;
mod modules;
mod peft;
mod publish;
mod spec;
mod stacked;
mod target_parameters;
mod tensors;
mod updates;

pub use distribution::distribute;
pub use eva::{InputRecorder, PrincipalInputs};
pub use modules::{LoraModules, scale, with_ranks};
pub use spec::{LoraInit, LoraSpec, MAX_RANK};
pub use stacked::refusal as stack_refusal;
pub use tensors::factors;

pub(super) use fused::{for_modules, split as split_stacks, usual_name};
pub(super) use peft::read as read_config;
pub(super) use stacked::stacked;
pub(super) use target_parameters::KEY as TARGET_PARAMETERS;

use super::kind::{AdapterActivations, AdapterKind};
use super::module_settings::KindSection;
use super::plan::AdaptLayer;
use super::targets::{ModuleRules, ModuleRulesMut};
use super::token_rows::{self, AttachTokenRows, FindToken, ROWS_BESIDE_LORA, TrainedRows};
use super::update::WeightUpdate;
use crate::error::Result;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Tensor;

impl KindSection for LoraSpec {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn rules(&self) -> ModuleRules<'_> {
        ModuleRules {
            kind: self.name(),
            targets: &self.targets,
            exclude: self.exclude.as_ref(),
            layers: self.layers.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    fn rules_mut(&mut self) -> ModuleRulesMut<'_> {
        ModuleRulesMut {
            targets: &mut self.targets,
            exclude: &mut self.exclude,
            layers: &mut self.layers,
            layers_pattern: &mut self.layers_pattern,
            modules_to_save: &mut self.modules_to_save,
            fan_in_fan_out: &mut self.fan_in_fan_out,
        }
    }

    fn continues(&self) -> Option<&Path> {
        self.from.as_deref()
    }
}

impl AdapterKind for LoraSpec {
    fn title(&self) -> &'static str {
        if self.dora { "DoRA" } else { "LoRA" }
    }

    fn describe(&self) -> String {
        format!("{} r{}", if self.dora { "dora" } else { "lora" }, self.rank)
    }

    fn layers(&self) -> Result<Box<dyn AdaptLayer>> {
        let modules = LoraModules::new(self)?;
        Ok(Box::new(attach::AttachLora {
            modules,
            init: self.init,
            dropout: self.dropout,
            dora: self.dora,
            bias: self.bias,
            freeze_a: self.freeze_a,
            token_rows: AttachTokenRows::new(
                token_rows::ids(&self.token_rows)?,
                token_rows::ids(&self.head_rows)?,
                ROWS_BESIDE_LORA,
                "adapter.lora.token_rows",
            ),
        }))
    }

    fn fixed_settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("rank", json!(self.rank)),
            ("alpha", json!(self.alpha)),
            ("rslora", json!(self.rslora)),
            ("dora", json!(self.dora)),
            ("bias", json!(self.bias)),
            ("token_rows", json!(self.token_rows)),
            ("head_rows", json!(self.head_rows)),
            ("tie", json!(self.tie)),
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

    fn is_gradient_exact(&self) -> bool {
        !self.dora
    }

    fn activations(&self) -> AdapterActivations {
        let rank = self.rank as u64 * if self.init.takes_from_base() { 2 } else { 1 };
        let (dropout, scaled_outputs) = (self.dropout > 0.0, self.dora);
        AdapterActivations { rank, dropout, scaled_outputs, ..AdapterActivations::default() }
    }

    fn config(&self, base: &str) -> Value {
        peft::write(self, base)
    }

    fn tensor_prefix(&self) -> &'static str {
        "lora_"
    }

    fn tensor_names(&self) -> &'static [&'static str] {
        tensors::names(self)
    }

    fn is_unselected_tensor(&self, tensor: &str) -> bool {
        tensors::is_token_rows(self, tensor)
    }

    fn why_not_merged(&self) -> Option<String> {
        let why = "it corrects the error of a quantised base (init: loftq) and is used over that base only";
        self.corrects_quantisation().then(|| why.into())
    }

    fn corrects_quantisation(&self) -> bool {
        self.init == LoraInit::Loftq
    }

    fn resolve_tokens(&mut self, find: &FindToken) -> Result<()> {
        token_rows::resolve(&mut self.token_rows, "adapter.lora.token_rows", find)?;
        token_rows::resolve(&mut self.head_rows, "adapter.lora.head_rows", find)
    }

    fn train_token_rows(&mut self, embedding: &[i64], head: &[i64]) -> bool {
        token_rows::add(&mut self.token_rows, embedding);
        token_rows::add(&mut self.head_rows, head);
        true
    }

    fn trained_rows(&self) -> Result<TrainedRows> {
        Ok(TrainedRows { embedding: token_rows::ids(&self.token_rows)?, head: token_rows::ids(&self.head_rows)? })
    }

    fn asks_to_tie(&self) -> bool {
        self.tie
    }

    fn rate_factors(&self) -> Vec<(&'static str, f64)> {
        self.b_lr_ratio.map(|ratio| (r"\.lora_B\.", ratio)).into_iter().collect()
    }

    fn publish(&mut self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        if self.tie {
            publish::name_embedding(self, tensors.keys());
        }
        if !self.init.takes_from_base() {
            return tensors;
        }
        publish::double_rank(self);
        publish::without_start(tensors)
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
