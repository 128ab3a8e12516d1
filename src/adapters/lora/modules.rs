//! The rank and scale of each module that a LoRA adapts.

use super::spec::LoraSpec;
use crate::adapters::targets::PatternValues;
use crate::error::Result;
use std::collections::BTreeMap;

/// Rank and alpha of the modules that a [`LoraSpec`] adapts.
pub struct LoraModules {
    ranks: PatternValues<i64>,
    alphas: PatternValues<f64>,
    rslora: bool,
}

impl LoraModules {
    /// Compiles the patterns of a spec. Fails for invalid regular expressions.
    pub fn new(spec: &LoraSpec) -> Result<Self> {
        Ok(Self {
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

/// Returns the settings of a LoRA with these ranks of its modules, whose scale is 1 everywhere.
pub fn with_ranks(spec: &LoraSpec, ranks: &BTreeMap<String, i64>) -> LoraSpec {
    // The highest rank is the default and others are exceptions: readers that ignore patterns then allocate enough.
    let rank = ranks.values().copied().max().unwrap_or(1);
    let unlike = || ranks.iter().filter(|(_, r)| **r != rank);
    LoraSpec {
        rank,
        alpha: rank as f64,
        rslora: false,
        rank_pattern: unlike().map(|(module, r)| (module.clone(), *r)).collect(),
        alpha_pattern: unlike().map(|(module, r)| (module.clone(), *r as f64)).collect(),
        ..spec.clone()
    }
}

/// Returns the scale of an update: alpha / R, or alpha / sqrt(R) for rsLoRA.
pub fn scale(alpha: f64, rank: i64, rslora: bool) -> f64 {
    if rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
}
