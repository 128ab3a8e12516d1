//! The settings that kinds of adapters have in common: which modules they adapt.

use super::targets::{ModuleRules, ModuleRulesMut, Targets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::LazyLock;

/// Every linear layer but the output head: what most kinds adapt if a recipe names no modules.
pub(super) static ALL_LINEAR: LazyLock<Targets> = LazyLock::new(Targets::default);

/// Which modules an adapter adapts or trains in full, and what it continues.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModuleSettings {
    /// `all-linear`, a regular expression for the whole module name, or a list of names or name endings. Left out: the
    /// modules that this kind usually adapts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// Modules left out, written as `targets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Targets>,
    /// Only these layers, by number from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<i64>>,
    /// Names of the module lists that `layers` counts in; by default any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers_pattern: Vec<String>,
    /// Modules trained in full and saved with the adapter, by name or name ending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Folder of an adapter to continue training from, with the same base, shape and targets. It is then also the
    /// reference model of methods that need one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub from: Option<PathBuf>,
    /// True if adapted weights are stored as (in, out). Taken from the model, never from a recipe; PEFT's files
    /// contain it.
    #[serde(skip)]
    pub fan_in_fan_out: bool,
}

impl ModuleSettings {
    /// Returns the settings that select modules; `section` is the kind's in a recipe, such as `adapter.ia3`, and `usual`
    /// are its targets where none are given.
    pub fn rules<'a>(&'a self, section: &'static str, usual: &'a Targets) -> ModuleRules<'a> {
        ModuleRules {
            section,
            targets: self.targets.as_ref().unwrap_or(usual),
            exclude: self.exclude.as_ref(),
            layers: self.layers.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    /// Returns the settings that select modules, to change them.
    pub fn rules_mut(&mut self, usual: &Targets) -> ModuleRulesMut<'_> {
        ModuleRulesMut {
            targets: self.targets.get_or_insert_with(|| usual.clone()),
            exclude: &mut self.exclude,
            layers: &mut self.layers,
            layers_pattern: &mut self.layers_pattern,
            modules_to_save: &mut self.modules_to_save,
            fan_in_fan_out: &mut self.fan_in_fan_out,
        }
    }
    /// Returns true if the targets are a list of names and nothing else restricts them: for kinds whose PEFT config knows
    /// no numbers of layers.
    pub(super) fn has_names_alone(&self) -> bool {
        matches!(self.targets, Some(Targets::Names(_))) && self.exclude.is_none() && self.layers.is_none()
    }
}
