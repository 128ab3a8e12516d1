//! The settings of a search for the weights of a merge of adapters.

use crate::adapters::merging::plan::{MergePlan, SettingsMistake};
use std::path::PathBuf;

/// What has a weight of its own in a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SweepBy {
    /// Each adapter; weights are tried on a grid.
    #[default]
    Adapter,
    /// Each adapter in each layer; weights are trained.
    Layer,
    /// Each adapter in each module, which is a linear layer, a norm or an embedding; weights are trained.
    Module,
    /// Each component `bᵣ aᵣ` of an adapter's change `Σᵣ bᵣ aᵣ` of a module; weights are trained.
    Component,
}

impl SweepBy {
    /// The names in commands and files.
    pub const NAMES: [&str; 4] = ["adapter", "layer", "module", "component"];

    /// Returns the choice of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Adapter, Self::Layer, Self::Module, Self::Component].into_iter().find(|by| by.name() == name)
    }

    /// Returns the name in commands and files.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Returns true if weights are trained, and not tried on a grid.
    pub fn is_trained(self) -> bool {
        self != Self::Adapter
    }
}

/// A search for weights by the loss on rows.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepSettings {
    /// The file of rows.
    pub rows: PathBuf,
    /// Only this many rows, the first ones.
    pub limit: Option<usize>,
    /// What has a weight of its own.
    pub by: SweepBy,
    /// Number of optimiser steps, if weights are trained; `None`: the usual number.
    pub steps: Option<usize>,
    /// Determines the order of rows, if weights are trained.
    pub seed: u64,
}

impl SweepSettings {
    /// Returns what contradicts the plan of the merge, or the other settings.
    pub fn mistake(&self, plan: &MergePlan) -> Option<SettingsMistake> {
        let by = self.by.name();
        let wrong = |key, message, hint| Some(SettingsMistake { key, message, hint });
        match (self.by.is_trained(), self.steps) {
            (false, Some(_)) => wrong(
                "sweep_steps",
                format!("a search by {by} tries weights on a grid and takes no steps"),
                "leave it out, or search by layer, module or component",
            ),
            (true, Some(0)) => wrong("sweep_steps", "0 steps train no weights".into(), "at least 1, e.g. 60"),
            (true, _) if !plan.is_sum() => wrong(
                "sweep_by",
                format!(
                    "weights by {by} are trained for `linear`, the plain sum, and the merge is `{}`",
                    plan.describe()
                ),
                "search by adapter, or merge with linear, without rank and energy",
            ),
            _ => None,
        }
    }
}
