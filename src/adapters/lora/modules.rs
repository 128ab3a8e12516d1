//! Which modules a LoRA adapts, and the rank and scale of each.

use super::spec::LoraSpec;
use crate::adapters::targets::{ModuleRules, ModuleSelection, PatternValues};
use crate::error::Result;

/// The modules that one [`LoraSpec`] adapts, with rank and alpha of each.
pub struct LoraModules {
    /// The rules that select modules.
    pub selection: ModuleSelection,
    ranks: PatternValues<i64>,
    alphas: PatternValues<f64>,
    rslora: bool,
}

impl LoraModules {
    /// Compiles the rules of a spec. Fails for invalid regular expressions and contradicting settings.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        let selection = ModuleSelection::new(ModuleRules {
            section: "adapter.lora",
            targets: &spec.targets,
            exclude: spec.exclude.as_ref(),
            layers: spec.layers.as_deref(),
            layers_pattern: &spec.layers_pattern,
            modules_to_save: &spec.modules_to_save,
        })?;
        Ok(Self {
            selection,
            ranks: PatternValues::new(&spec.rank_pattern, spec.rank, "adapter.lora.rank_pattern")?,
            alphas: PatternValues::new(&spec.alpha_pattern, spec.alpha, "adapter.lora.alpha_pattern")?,
            rslora: spec.rslora,
        })
    }

    /// Returns the rank of a module's update.
    pub fn rank(&self, module: &str) -> i64 {
        self.ranks.get(module)
    }

    /// Returns the numerator of the scale of a module's update.
    pub fn alpha(&self, module: &str) -> f64 {
        self.alphas.get(module)
    }

    /// Returns the scale of a module's update.
    pub fn scale(&self, module: &str) -> f64 {
        scale(self.alpha(module), self.rank(module), self.rslora)
    }
}

/// Returns the scale of an update: alpha / R, or alpha / sqrt(R) for rsLoRA.
pub fn scale(alpha: f64, rank: i64, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}
