//! Assigns learning rates and weight decay to parameters by name (`optim.groups`).

use super::rule::StepSize;
use crate::error::{Error, Result};
use crate::nn::Param;
use crate::recipe::optim::OptimSection;
use fancy_regex::Regex;

/// Settings of a parameter: `lr` as a factor of the recipe's learning rate, and its weight decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupSettings {
    /// Factor of the learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
}

impl GroupSettings {
    /// Returns learning rate, decay and step number for the parameter's `step`th update, at the recipe's learning rate
    /// `lr`.
    pub fn step_size(self, lr: f64, step: u64) -> StepSize {
        StepSize { lr: lr * self.lr, decay: self.decay, step }
    }
}

/// Returns the settings of every trained parameter, in order. The first pattern that matches a name decides. Fails if a
/// pattern is invalid, matches no parameter, or matches only parameters that an earlier pattern matches.
pub fn group_settings(params: &[&Param], optim: &OptimSection) -> Result<Vec<GroupSettings>> {
    let mut rules = Vec::new();
    for (i, g) in optim.groups.iter().enumerate() {
        let regex = Regex::new(&g.r#match).map_err(|e| {
            Error::user(format!("optim.groups.{i}.match: `{}` is not a regular expression: {e}", g.r#match))
        })?;
        let names: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
        if !names.iter().any(|n| regex.is_match(n).unwrap_or(false)) {
            return Err(Error::user(format!(
                "optim.groups.{i}.match: `{}` matches none of the {} trained parameters",
                g.r#match,
                names.len()
            ))
            .hint(format!("the nearest names are {}", nearest(&g.r#match, &names).join(", "))));
        }
        rules.push((regex, g));
    }
    let base = optim.lr.unwrap_or_default();
    let mut used = vec![false; rules.len()];
    let mut share = |p: &Param| {
        let usual = if optim.decay_norms || p.is_matrix() { optim.weight_decay } else { 0.0 };
        let Some(i) = rules.iter().position(|(r, _)| r.is_match(&p.name).unwrap_or(false)) else {
            return GroupSettings { lr: 1.0, decay: usual };
        };
        used[i] = true;
        let g = rules[i].1;
        GroupSettings { lr: g.lr.map_or(1.0, |lr| lr / base), decay: g.weight_decay.unwrap_or(usual) }
    };
    let shares = params.iter().map(|p| share(p)).collect();
    match used.iter().position(|used| !used) {
        Some(i) => Err(Error::user(format!(
            "optim.groups.{i}.match: all parameters that `{}` matches belong to earlier groups",
            optim.groups[i].r#match
        ))
        .hint("the first match counts: put the narrower pattern first")),
        None => Ok(shares),
    }
}

/// Returns the three names most similar to the pattern. Names that differ only in numbers (those of a layer in every
/// block) appear once.
fn nearest(pattern: &str, names: &[&str]) -> Vec<String> {
    let plain: String = pattern.chars().filter(|c| c.is_alphanumeric() || matches!(c, '_' | '.')).collect();
    let parts = |n: &str| n.split('.').map(|part| strsim::jaro_winkler(part, &plain)).fold(0.0, f64::max);
    let score = |n: &str| parts(n).max(strsim::jaro_winkler(n, &plain));
    let mut kinds: Vec<(String, &str)> = Vec::new();
    for name in names {
        let kind: String = name.chars().filter(|c| !c.is_ascii_digit()).collect();
        if !kinds.iter().any(|(k, _)| *k == kind) {
            kinds.push((kind, name));
        }
    }
    kinds.sort_by(|a, b| score(b.1).total_cmp(&score(a.1)));
    kinds.iter().take(3).map(|(_, n)| format!("`{n}`")).collect()
}
