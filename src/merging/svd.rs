//! Reduces a change of a weight to a product of small rank by its singular values.

use super::delta::Delta;
use tch::{Device, Kind, Tensor};

/// How far a change is reduced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Truncation {
    /// To this rank at most.
    Rank(i64),
    /// To the smallest rank that keeps this share of the energy (the squared Frobenius norm).
    Energy(f64),
}

/// A reduced change.
pub struct Truncated {
    /// V, (R, in): orthonormal rows.
    pub a: Tensor,
    /// U S, (out, R), as in PEFT.
    pub b: Tensor,
    /// The share of the energy that was kept: 1 if nothing was lost.
    pub energy: f64,
}

impl Truncated {
    /// Returns the reduced change.
    pub fn delta(&self) -> Delta {
        Delta::Factors { a: self.a.shallow_clone(), b: self.b.shallow_clone() }
    }
}

/// Matrices whose smaller side is above this are decomposed by iteration if only few singular values are needed.
const LARGE: i64 = 1024;

/// Reduces a change to its largest singular values (Eckart and Young 1936). The result has at least rank 1. Of a large matrix
/// that is reduced to less than an eighth of its size, the directions are those of [`largest`].
pub fn truncate(delta: &Delta, to: Truncation) -> Truncated {
    let (u, s, v, whole) = decompose_for(delta, to);
    let squares: Vec<f64> = Vec::try_from(s.square().to_kind(Kind::Double)).expect("a vector");
    let whole = whole.unwrap_or_else(|| squares.iter().sum());
    let most = squares.len() as i64;
    let rank = match to {
        Truncation::Rank(rank) => rank.clamp(1, most),
        Truncation::Energy(share) => rank_for(&squares, whole, share).clamp(1, most),
    };
    let kept: f64 = squares[..rank as usize].iter().sum();
    let narrow = |t: Tensor| t.to_kind(Kind::Float).contiguous();
    Truncated {
        a: narrow(v.narrow(1, 0, rank).tr()),
        b: narrow(u.narrow(1, 0, rank) * s.narrow(0, 0, rank)),
        energy: if whole > 0.0 { (kept / whole).min(1.0) } else { 1.0 },
    }
}

/// Returns the smallest number of the largest squares that are this share of the whole. Rounding errors do not count.
fn rank_for(squares: &[f64], whole: f64, share: f64) -> i64 {
    let wanted = share * whole * (1.0 - 1e-9);
    let mut sum = 0.0;
    let enough = squares.iter().position(|square| {
        sum += square;
        sum >= wanted
    });
    enough.map_or(squares.len(), |last| last + 1) as i64
}

/// Returns the singular values of a change, the largest first.
pub fn singular_values(delta: &Delta) -> Vec<f64> {
    let values = match delta {
        Delta::Dense(change) => change.svd(true, false).1,
        Delta::Factors { .. } => decompose_delta(delta).1,
    };
    Vec::try_from(values.to_kind(Kind::Double)).expect("a vector")
}

/// Returns how many singular values count: the exponential of the entropy of their shares (Roy and Vetterli 2007, "The
/// effective rank"). 0 for a change that is zero.
pub fn effective_rank(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let entropy: f64 = values.iter().map(|v| v / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// Returns the singular value decomposition of a matrix as U, S, V.
pub fn decompose(matrix: &Tensor) -> (Tensor, Tensor, Tensor) {
    matrix.svd(true, true)
}

/// Returns U, S, V of a change. That of a product follows in float64 from the QR decompositions of its factors: the matrix
/// that is decomposed has the size of the rank.
fn decompose_delta(delta: &Delta) -> (Tensor, Tensor, Tensor) {
    match delta {
        Delta::Factors { a, b } if a.size()[0] <= a.size()[1].min(b.size()[0]) => {
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let (left, upper) = Tensor::linalg_qr(&wide(b), "reduced"); // (out, R), (R, R)
            let (right, lower) = Tensor::linalg_qr(&wide(a).tr(), "reduced"); // (in, R), (R, R)
            let (u, s, v) = decompose(&upper.matmul(&lower.tr()));
            (left.matmul(&u), s, right.matmul(&v))
        }
        delta => decompose(&delta.dense().to_kind(Kind::Double)),
    }
}

/// Decomposes a change as far as `to` needs it. If not all singular values were computed, the energy of the whole is
/// returned as well.
fn decompose_for(delta: &Delta, to: Truncation) -> (Tensor, Tensor, Tensor, Option<f64>) {
    let shape = delta.shape();
    let smaller = shape[0].min(shape[1]);
    let Delta::Dense(matrix) = delta else {
        let (u, s, v) = decompose_delta(delta);
        return (u, s, v, None);
    };
    if smaller > LARGE {
        let whole = delta.dot(delta);
        let mut rank = match to {
            Truncation::Rank(rank) => rank,
            Truncation::Energy(_) => 32,
        };
        while 8 * rank <= smaller {
            let (u, s, v) = largest(matrix, &start(matrix, rank), 8);
            let kept = rank.min(s.size()[0]);
            let (u, s, v) = (u.narrow(1, 0, kept), s.narrow(0, 0, kept), v.narrow(1, 0, kept));
            let energy = s.square().sum(Kind::Double).double_value(&[]);
            if !matches!(to, Truncation::Energy(share) if energy < share * whole) {
                return (u, s, v, Some(whole));
            }
            rank *= 2;
        }
    }
    // In float64, because the directions of singular values that are near each other are uncertain in float32; of large
    // matrices it would take too long.
    let (u, s, v) = match smaller > LARGE {
        true => decompose(matrix),
        false => decompose_delta(delta),
    };
    (u, s, v, None)
}

/// Returns the shape of a start for [`largest`], (in, columns): eight columns more than the rank that is wanted.
pub fn start_shape(matrix: &Tensor, rank: i64) -> [i64; 2] {
    const MORE: i64 = 8;
    let (outputs, inputs) = matrix.size2().expect("a matrix");
    [inputs, (rank + MORE).min(outputs.min(inputs))]
}

/// Returns a fixed start for [`largest`]. Its numbers look random and depend on nothing.
fn start(matrix: &Tensor, rank: i64) -> Tensor {
    let shape = start_shape(matrix, rank);
    let numbers = Tensor::arange(shape[0] * shape[1], (Kind::Double, Device::Cpu));
    // The fractional parts of multiples of an irrational number, spread by a second one.
    let spread = (numbers * 0.618_033_988_749_894_8).frac() * 43_758.545_312_3;
    (spread.frac() * 2.0 - 1.0).view(shape).to_kind(Kind::Float)
}

/// Computes as many of the largest singular values and vectors as `start` (in, columns) has columns, by subspace iteration
/// (Halko et al. 2009, arXiv 0909.4061, algorithms 4.4 and 5.1). The last ones are the least exact: start with more than are
/// used.
pub fn largest(matrix: &Tensor, start: &Tensor, iterations: usize) -> (Tensor, Tensor, Tensor) {
    let basis = |t: Tensor| Tensor::linalg_qr(&t, "reduced").0;
    let mut q = basis(matrix.matmul(&start.to_device(matrix.device()))); // (out, columns)
    for _ in 0..iterations {
        q = basis(matrix.matmul(&basis(matrix.tr().matmul(&q))));
    }
    let (u, s, v) = decompose(&q.tr().matmul(matrix));
    (q.matmul(&u), s, v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn error(reduced: &Truncated, whole: &Tensor) -> f64 {
        (reduced.delta().dense() - whole).norm().double_value(&[]) / whole.norm().double_value(&[])
    }

    #[test]
    fn a_change_is_reduced_to_a_rank_or_to_an_energy() {
        // Singular values 4, 3, 2, 1: energies 16, 9, 4, 1 of 30.
        let (left, right) = (random([9, 4]), random([7, 4]));
        let basis = |t: &Tensor| Tensor::linalg_qr(t, "reduced").0;
        let values = Tensor::from_slice(&[4f32, 3.0, 2.0, 1.0]);
        let (b, a) = (basis(&left) * &values, basis(&right).tr());
        for delta in [Delta::Dense(b.matmul(&a)), Delta::Factors { a: a.shallow_clone(), b: b.shallow_clone() }] {
            for (to, rank, energy) in [
                (Truncation::Rank(1), 1, 16.0 / 30.0),
                (Truncation::Rank(100), if matches!(delta, Delta::Dense(_)) { 7 } else { 4 }, 1.0),
                (Truncation::Energy(0.8), 2, 25.0 / 30.0),
                (Truncation::Energy(0.84), 3, 29.0 / 30.0),
                (Truncation::Energy(0.001), 1, 16.0 / 30.0),
            ] {
                let reduced = truncate(&delta, to);
                assert_eq!((reduced.a.size()[0], reduced.b.size()[1]), (rank, rank), "{to:?}");
                assert!((reduced.energy - energy).abs() < 1e-5, "{to:?}: {}", reduced.energy);
                let lost = error(&reduced, &delta.dense());
                assert!((lost - (1.0 - energy).max(0.0).sqrt()).abs() < 1e-3, "{to:?}: {lost}");
            }
            assert!((singular_values(&delta)[2] - 2.0).abs() < 1e-5);
        }
        assert!((effective_rank(&[1.0, 1.0, 1.0]) - 3.0).abs() < 1e-9 && effective_rank(&[0.0]) == 0.0);
    }

    #[test]
    fn a_large_matrix_is_reduced_by_iteration_as_by_the_full_decomposition() {
        let size = LARGE + 8;
        let noise = random([size, size]) * 1e-3;
        let matrix = random([size, 4]).matmul(&random([4, size])) + noise;
        let reduced = truncate(&Delta::Dense(matrix.shallow_clone()), Truncation::Rank(4));
        let (u, s, v) = largest(&matrix, &random([size, 12]), 20);
        let best = (u.narrow(1, 0, 4) * s.narrow(0, 0, 4)).matmul(&v.narrow(1, 0, 4).tr());
        let apart = (reduced.delta().dense() - &best).norm().double_value(&[]) / best.norm().double_value(&[]);
        assert!(apart < 1e-5, "{apart}");
        assert!((error(&reduced, &matrix).powi(2) - (1.0 - reduced.energy)).abs() < 1e-6);
    }

    #[test]
    fn a_change_of_nothing_stays_nothing() {
        let nothing = Delta::Dense(Tensor::zeros([5, 3], (Kind::Float, Device::Cpu)));
        let reduced = truncate(&nothing, Truncation::Energy(0.9));
        assert_eq!((reduced.energy, reduced.a.size()[0], reduced.delta().norm()), (1.0, 1, 0.0));
    }
}
