//! Merges the factors of products instead of the products, as PEFT does by default. The result is another one than that of
//! the changes: a sum of the A's times a sum of the B's contains the products of every A with every B.

use super::delta::Delta;
use super::method::{Rule, merge_tensors};
use super::prune::random_mask;
use tch::Tensor;

/// The product scale · B A of one part.
pub struct FactorPart {
    /// Position of the part in the merge, which its random entries depend on.
    pub part: usize,
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    /// The weight of the part times the scale of its product.
    pub weight: f64,
    /// The share of the entries of each factor that is kept.
    pub density: f64,
}

/// Divides the weight w of a product between its factors A and B: sqrt(|w|) on each, with the sign of w on A
/// (`add_weighted_adapter` of PEFT 0.21).
pub fn factor_weights(weight: f64) -> [f64; 2] {
    let root = weight.abs().sqrt();
    [if weight < 0.0 { -root } else { root }, root]
}

/// Merges factors of equal rank of the weight `name`.
pub fn merge_factors(name: &str, parts: &[FactorPart], rule: &Rule) -> Delta {
    let densities: Vec<f64> = parts.iter().map(|p| p.density).collect();
    let side = |side: usize, of: fn(&FactorPart) -> &Tensor| {
        let masks = |i: usize, shape: &[i64]| {
            let stream = format!("dare {} {name} {}", parts[i].part, ["A", "B"][side]);
            random_mask(shape, parts[i].density, rule.seed, &stream)
        };
        let weights: Vec<f64> = parts.iter().map(|p| factor_weights(p.weight)[side]).collect();
        merge_tensors(parts.iter().map(|p| of(p).shallow_clone()).collect(), &weights, &densities, rule, &masks)
    };
    Delta::Factors { a: side(0, |p| &p.a), b: side(1, |p| &p.b) }
}
