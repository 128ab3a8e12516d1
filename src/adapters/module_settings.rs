//! The settings that kinds of adapters have in common: which modules they adapt.

use super::targets::{ModuleRules, ModuleRulesMut, Targets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which modules an adapter adapts or trains in full, and what it continues.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModuleSettings {
    /// `all-linear`, a regular expression for the whole module name, or a list of names or name endings.
    pub targets: Targets,
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
    /// Returns the settings that select modules; `section` is the kind's in a recipe, such as `adapter.ia3`.
    pub fn rules(&self, section: &'static str) -> ModuleRules<'_> {
        ModuleRules {
            section,
            targets: &self.targets,
            exclude: self.exclude.as_ref(),
            layers: self.layers.as_deref(),
            layers_pattern: &self.layers_pattern,
            modules_to_save: &self.modules_to_save,
        }
    }

    /// Returns the settings that select modules, to change them.
    pub fn rules_mut(&mut self) -> ModuleRulesMut<'_> {
        ModuleRulesMut {
            targets: &mut self.targets,
            exclude: &mut self.exclude,
            layers: &mut self.layers,
            layers_pattern: &mut self.layers_pattern,
            modules_to_save: &mut self.modules_to_save,
            fan_in_fan_out: &mut self.fan_in_fan_out,
        }
    }
}
