//! The methods that merge the changes of one weight, entry by entry. Weights and densities are those of PEFT's
//! `add_weighted_adapter`: a sign is elected before changes are weighted.

use super::delta::Delta;
use super::knots;
use super::prune::{drop_and_rescale, keep_largest, random_mask};
use super::ties::{MajoritySign, agreeing_mean, elected_sign};
use serde::Serialize;
use tch::Tensor;

/// How the changes of a weight become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The weighted sum.
    #[default]
    Linear,
    /// Trims each change to its largest entries, elects a sign for each entry and averages the changes that have it (arXiv
    /// 2306.01708).
    Ties,
    /// Drops random entries of each change, rescales the others and adds up (arXiv 2311.03099).
    DareLinear,
    /// Drops random entries of each change, rescales the others, elects signs and averages.
    DareTies,
    /// Trims each change to its largest entries and adds up.
    MagnitudePrune,
}

impl Method {
    /// Returns true if the method sets entries of each change to zero, so that a density means something.
    pub fn prunes(self) -> bool {
        self != Self::Linear
    }

    /// Returns true if the entries that are kept are random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }

    /// Returns true if a sign is elected for each entry.
    pub fn elects_signs(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

/// A method and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rule {
    /// The method.
    pub method: Method,
    /// How signs are elected.
    pub majority_sign: MajoritySign,
    /// Determines which random entries are kept.
    pub seed: u64,
    /// True if the changes are first written in common directions (KnOTS).
    pub knots: bool,
}

/// The change that one part makes to a weight, and what the part counts.
pub struct WeightedDelta {
    /// Position of the part in the merge, which its random entries depend on.
    pub part: usize,
    /// The change.
    pub delta: Delta,
    /// The factor on it.
    pub weight: f64,
    /// The share of its entries that is kept, above 0 and at most 1.
    pub density: f64,
}

/// Merges the changes of the weight `name`. The result of a linear sum of products, and of any method in common directions,
/// is a product again.
pub fn merge(name: &str, parts: &[WeightedDelta], rule: &Rule) -> Delta {
    if rule.method == Method::Linear {
        return Delta::sum(&parts.iter().map(|p| p.delta.times(p.weight)).collect::<Vec<_>>());
    }
    let masks = |i: usize, shape: &[i64]| {
        random_mask(shape, parts[i].density, rule.seed, &format!("dare {} {name}", parts[i].part))
    };
    let weights: Vec<f64> = parts.iter().map(|p| p.weight).collect();
    let densities: Vec<f64> = parts.iter().map(|p| p.density).collect();
    if rule.knots && parts.iter().all(|p| p.delta.is_matrix()) {
        let aligned = knots::align(&parts.iter().map(|p| &p.delta).collect::<Vec<_>>());
        return Delta::Factors {
            a: merge_tensors(aligned.parts, &weights, &densities, rule, &masks),
            b: aligned.directions,
        };
    }
    let changes = parts.iter().map(|p| p.delta.dense()).collect();
    Delta::Dense(merge_tensors(changes, &weights, &densities, rule, &masks))
}

/// Merges tensors of the same shape. `masks` returns which entries of the i-th tensor, of this shape, a random method keeps.
pub fn merge_tensors(
    mut changes: Vec<Tensor>,
    weights: &[f64],
    densities: &[f64],
    rule: &Rule,
    masks: &dyn Fn(usize, &[i64]) -> Tensor,
) -> Tensor {
    for (i, (change, density)) in changes.iter_mut().zip(densities).enumerate().filter(|(_, (_, d))| **d < 1.0) {
        *change = match rule.method {
            Method::Linear => continue,
            Method::Ties | Method::MagnitudePrune => keep_largest(change, *density),
            Method::DareLinear | Method::DareTies => drop_and_rescale(change, &masks(i, &change.size()), *density),
        };
    }
    if rule.method.elects_signs() {
        let sign = elected_sign(&changes, rule.majority_sign);
        return agreeing_mean(&changes, weights, &sign);
    }
    let mut sum = &changes[0] * weights[0];
    changes[1..].iter().zip(&weights[1..]).for_each(|(change, weight)| sum += change * *weight);
    sum
}
