//! The settings that kinds of adapters have in common: which modules they adapt, and what follows from these settings
//! ([`ModuleKind`]).

use super::targets::{ModuleRules, ModuleRulesMut, Targets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Every linear layer but the output head: what most kinds adapt if a recipe names no modules.
static ALL_LINEAR: LazyLock<Targets> = LazyLock::new(Targets::default);

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
    /// Returns true if the targets are a list of names and nothing else restricts them: for kinds whose PEFT config knows
    /// no numbers of layers.
    pub(super) fn has_names_alone(&self) -> bool {
        matches!(self.targets, Some(Targets::Names(_))) && self.exclude.is_none() && self.layers.is_none()
    }
}

/// What the section of a kind in a recipe says, whatever the kind: which modules it selects and what it continues.
pub trait KindSection {
    /// Returns the name of the kind's section in a recipe, such as `lora`.
    fn name(&self) -> &'static str;

    /// Returns the settings that select modules.
    fn rules(&self) -> ModuleRules<'_>;

    /// Returns the settings that select modules, to change them.
    fn rules_mut(&mut self) -> ModuleRulesMut<'_>;

    /// Returns the folder of the adapter that training continues; `None` for a new adapter.
    fn continues(&self) -> Option<&Path>;
}

/// A kind whose section contains [`ModuleSettings`]; its [`KindSection`] follows from them.
pub trait ModuleKind {
    /// Name of the kind's section in a recipe.
    const NAME: &'static str;

    /// Returns the settings.
    fn modules(&self) -> &ModuleSettings;

    /// Returns the settings, to change them.
    fn modules_mut(&mut self) -> &mut ModuleSettings;

    /// Returns the targets of settings that name none.
    fn usual_targets() -> &'static Targets {
        &ALL_LINEAR
    }

    /// Returns the folder of the adapter that training continues.
    fn continues_from(&self) -> Option<&Path> {
        self.modules().from.as_deref()
    }
}

impl<K: ModuleKind> KindSection for K {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn rules(&self) -> ModuleRules<'_> {
        let ModuleSettings { targets, exclude, layers, layers_pattern, modules_to_save, .. } = self.modules();
        ModuleRules {
            kind: K::NAME,
            targets: targets.as_ref().unwrap_or(K::usual_targets()),
            exclude: exclude.as_ref(),
            layers: layers.as_deref(),
            layers_pattern,
            modules_to_save,
        }
    }

    fn rules_mut(&mut self) -> ModuleRulesMut<'_> {
        let ModuleSettings { targets, exclude, layers, layers_pattern, modules_to_save, fan_in_fan_out, .. } =
            self.modules_mut();
        let targets = targets.get_or_insert_with(|| K::usual_targets().clone());
        ModuleRulesMut { targets, exclude, layers, layers_pattern, modules_to_save, fan_in_fan_out }
    }

    fn continues(&self) -> Option<&Path> {
        self.continues_from()
    }
}
