//! Orthogonal matrices from skew-symmetric ones, and inputs rotated by them in blocks.

use crate::native::upload;
use crate::nn::recomputed::recomputed;
use crate::nn::weight::cast;
use tch::{Device, Kind, Tensor};

/// How a rotation is computed from a skew-symmetric matrix Q.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cayley {
    /// `(I - Q) (I + Q)^-1`, which is orthogonal.
    Exact,
    /// The first terms of the Neumann series of its transpose, `(I + Q) (I - Q)^-1`: `I + 2 Q + 2 Q² + … + Q^(n-1)`, which is
    /// nearly orthogonal for small Q. That it is the transpose, and that the last term is not doubled, is as in PEFT.
    Neumann(i64),
}

impl Cayley {
    /// Returns the rotations (r, b, b) of the entries (r, b (b - 1) / 2) above the diagonals of skew-symmetric matrices.
    pub fn rotations(self, entries: &Tensor, block: i64) -> Tensor {
        let q = skew_symmetric(entries, block);
        let one = Tensor::eye(block, (q.kind(), q.device()));
        match self {
            // R (I + Q) = I - Q
            Self::Exact => Tensor::linalg_solve(&(&one + &q), &(&one - &q), false),
            Self::Neumann(terms) => {
                let mut sum = &one + q.zeros_like();
                if terms > 1 {
                    sum = sum + &q * 2.0;
                }
                if terms > 2 {
                    let mut power = q.matmul(&q);
                    sum = sum + &power * 2.0;
                    for _ in 3..terms - 1 {
                        power = power.matmul(&q);
                        sum = sum + &power * 2.0;
                    }
                    sum = sum + power.matmul(&q);
                }
                sum
            }
        }
    }
}

/// Returns skew-symmetric matrices (r, b, b) from their entries above the diagonal, row by row: (r, b (b - 1) / 2).
fn skew_symmetric(entries: &Tensor, block: i64) -> Tensor {
    let above = (0..block).flat_map(|row| (row + 1..block).map(move |column| row * block + column));
    let [places] = upload([Tensor::from_slice(&above.collect::<Vec<i64>>())], entries.device());
    let zeros = Tensor::zeros([entries.size()[0], block * block], (entries.kind(), entries.device()));
    let upper = zeros.index_add(1, &places, entries).view([-1, block, block]);
    &upper - upper.transpose(1, 2)
}

/// Rotates x (T, in) in blocks of b: block i is multiplied from the right by the i-th rotation of `entries`, or by the only
/// one if it is shared. The backward computes the rotations again.
pub(super) fn rotated(x: &Tensor, entries: &Tensor, block: i64, cayley: Cayley) -> Tensor {
    recomputed(x, &[entries], move |x, entries| rotated_by(x, &cast(&cayley.rotations(&entries[0], block), x.kind())))
}

/// Rotates x (T, in) by ready rotations (r, b, b) of its dtype.
pub(super) fn rotated_by(x: &Tensor, rotations: &Tensor) -> Tensor {
    let block = rotations.size()[1];
    let blocks = x.reshape([-1, x.size()[x.dim() - 1] / block, block]).transpose(0, 1); // (in / b, T, b)
    blocks.matmul(rotations).transpose(0, 1).reshape(x.size())
}

/// Returns the rotations as one block-diagonal matrix D (in, in): the rotated x is x D.
pub(super) fn block_diagonal(rotations: &Tensor, inputs: i64) -> Tensor {
    let block = rotations.size()[1];
    let matrix = Tensor::zeros([inputs, inputs], (rotations.kind(), rotations.device()));
    for i in 0..inputs / block {
        let rotation = rotations.get(if rotations.size()[0] == 1 { 0 } else { i });
        matrix.narrow(0, i * block, block).narrow(1, i * block, block).copy_(&rotation);
    }
    matrix
}

/// Returns the size of the blocks for a layer: `block` if it divides the number of inputs, otherwise the divisor that is
/// nearest to it, as PEFT chooses it.
pub(super) fn block_of(inputs: i64, block: i64) -> i64 {
    if block >= inputs {
        return inputs;
    }
    let above = (block..=inputs).find(|b| inputs % b == 0).unwrap_or(inputs);
    let below = (1..=block).rev().find(|b| inputs % b == 0).unwrap_or(1);
    if block - below <= above - block { below } else { above }
}

/// Returns the number of entries above the diagonal of a square matrix.
pub(super) fn entries_of(block: i64) -> i64 {
    block * (block - 1) / 2
}

/// Returns entries at which every rotation is the identity.
pub(super) fn identity(blocks: i64, block: i64) -> Tensor {
    Tensor::zeros([blocks, entries_of(block)], (Kind::Float, Device::Cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_transform_is_orthogonal_and_the_series_nearly() {
        let entries = Tensor::arange(18, (Kind::Float, Device::Cpu)).sin().view([3, 6]) * 0.1;
        let one = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let defect = |cayley: Cayley| {
            let r = cayley.rotations(&entries, 4);
            (r.matmul(&r.transpose(1, 2)) - &one).abs().max().double_value(&[])
        };
        let (exact, series) = (defect(Cayley::Exact), defect(Cayley::Neumann(5)));
        // Missing are Q^4 and twice all higher powers; no matrix is larger than its Frobenius norm.
        let norms = entries.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float) * 2.0;
        let q = norms.max().double_value(&[]).sqrt();
        let missing = q.powi(4) + 2.0 * q.powi(5) / (1.0 - q);
        let most = missing * (2.0 + missing);
        assert!(exact < 1e-6 && series > 1e-6 && series < most, "{exact:e} and {series:e}, at most {most:e}");
        let gap = Cayley::Exact.rotations(&entries, 4) - Cayley::Neumann(30).rotations(&entries, 4).transpose(1, 2);
        assert!(gap.abs().max().double_value(&[]) < 1e-6);
        assert!(Cayley::Neumann(5).rotations(&identity(3, 4), 4).get(2).equal(&one));
    }

    /// Both ways to rotate agree with the matrix, with rotations of their own and a shared one.
    #[test]
    fn rows_are_rotated_as_by_the_whole_matrix() {
        tch::manual_seed(3);
        let x = Tensor::randn([5, 12], (Kind::Float, Device::Cpu));
        for blocks in [3, 1] {
            let entries = Tensor::randn([blocks, 6], (Kind::Float, Device::Cpu)) * 0.3;
            let r = Cayley::Exact.rotations(&entries, 4);
            let expected = x.matmul(&block_diagonal(&r, 12));
            for found in [rotated(&x, &entries, 4, Cayley::Exact), rotated_by(&x, &r)] {
                assert!(found.allclose(&expected, 1e-5, 1e-6, false));
            }
        }
    }

    /// The choices of PEFT's `adjust_oft_parameters`.
    #[test]
    fn blocks_that_do_not_divide_are_replaced_as_in_peft() {
        let found = [(24, 32), (64, 32), (96, 36), (36, 32), (36, 5), (24, 7), (17, 4)].map(|(n, b)| block_of(n, b));
        assert_eq!(found, [24, 32, 32, 36, 4, 6, 1]);
    }
}
