//! The change of one weight, and sums and products of such changes.

use tch::{Kind, Tensor};

/// The change of one weight in float32.
pub enum Delta {
    /// The change itself; a matrix is (out, in).
    Dense(Tensor),
    /// The product B A.
    Factors {
        /// (R, in)
        a: Tensor,
        /// (out, R)
        b: Tensor,
    },
}

impl Delta {
    /// Returns the change as one tensor.
    pub fn dense(&self) -> Tensor {
        match self {
            Delta::Dense(change) => change.shallow_clone(),
            Delta::Factors { a, b } => b.matmul(a),
        }
    }

    /// Returns the shape of the weight; a matrix is (out, in).
    pub fn shape(&self) -> Vec<i64> {
        match self {
            Delta::Dense(change) => change.size(),
            Delta::Factors { a, b } => vec![b.size()[0], a.size()[1]],
        }
    }

    /// Returns the rank of a product; `None` for a dense change, whose rank is not known.
    pub fn rank(&self) -> Option<i64> {
        match self {
            Delta::Dense(_) => None,
            Delta::Factors { a, .. } => Some(a.size()[0]),
        }
    }

    /// Returns true if the weight is a matrix, which has singular values.
    pub fn is_matrix(&self) -> bool {
        self.shape().len() == 2
    }

    /// Returns the change multiplied by a number.
    pub fn times(&self, factor: f64) -> Self {
        match self {
            Delta::Dense(change) => Delta::Dense(change * factor),
            Delta::Factors { a, b } => Delta::Factors { a: a * factor, b: b.shallow_clone() },
        }
    }

    /// Returns the sum of changes of the same weight. The factors of products are put side by side, so that the sum of
    /// products is a product of their ranks together.
    pub fn sum(deltas: &[Delta]) -> Self {
        let factors: Option<Vec<(&Tensor, &Tensor)>> = deltas
            .iter()
            .map(|delta| match delta {
                Delta::Factors { a, b } => Some((a, b)),
                Delta::Dense(_) => None,
            })
            .collect();
        match factors {
            Some(factors) => {
                let (a, b): (Vec<&Tensor>, Vec<&Tensor>) = factors.into_iter().unzip();
                Delta::Factors { a: Tensor::cat(&a, 0), b: Tensor::cat(&b, 1) }
            }
            None => {
                let mut sum = deltas[0].dense().copy();
                deltas[1..].iter().for_each(|delta| sum += delta.dense());
                Delta::Dense(sum)
            }
        }
    }

    /// Returns the inner product of two changes of the same weight: the sum of the products of their entries, in float64.
    pub fn dot(&self, other: &Delta) -> f64 {
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let entries = |x: &Tensor, y: &Tensor| (wide(x) * wide(y)).sum(Kind::Double).double_value(&[]);
        match (self, other) {
            (Delta::Dense(x), Delta::Dense(y)) => entries(x, y),
            // tr((B A)ᵀ B' A') = Σ (Bᵀ B') ∘ (A A'ᵀ)
            (Delta::Factors { a, b }, Delta::Factors { a: a2, b: b2 }) => {
                entries(&wide(b).tr().matmul(&wide(b2)), &wide(a).matmul(&wide(a2).tr()))
            }
            // tr((B A)ᵀ D) = Σ A ∘ (Bᵀ D)
            (Delta::Factors { a, b }, Delta::Dense(d)) | (Delta::Dense(d), Delta::Factors { a, b }) => {
                entries(a, &b.tr().matmul(d))
            }
        }
    }

    /// Returns the Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.dot(self).max(0.0).sqrt()
    }

    /// Returns true if every entry is a finite number; of a product, every entry of its factors.
    pub fn is_finite(&self) -> bool {
        let finite = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 1;
        match self {
            Delta::Dense(change) => finite(change),
            Delta::Factors { a, b } => finite(a) && finite(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn products_of_factors_are_those_of_the_dense_changes() {
        let one = Delta::Factors { a: random([2, 7]), b: random([5, 2]) };
        let two = Delta::Factors { a: random([3, 7]), b: random([5, 3]) };
        let dense = |d: &Delta| Delta::Dense(d.dense());
        let expected = dense(&one).dot(&dense(&two));
        for found in [one.dot(&two), one.dot(&dense(&two)), dense(&one).dot(&two)] {
            assert!((found - expected).abs() < 1e-4 * one.norm() * two.norm(), "{found} {expected}");
        }
        let sum = Delta::sum(&[one.times(0.5), two.times(-2.0)]);
        let wanted = one.dense() * 0.5 - two.dense() * 2.0;
        assert!(matches!(&sum, Delta::Factors { a, .. } if a.size()[0] == 5));
        assert!((sum.dense() - &wanted).abs().max().double_value(&[]) < 1e-5);
        let mixed = Delta::sum(&[dense(&one).times(0.5), two.times(-2.0)]);
        assert!((mixed.dense() - wanted).abs().max().double_value(&[]) < 1e-5);
    }
}
