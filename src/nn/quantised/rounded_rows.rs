//! Operands of products in FP8: matrices whose rows are rounded to e4m3, each with a scale of its own.
//!
//! With a scale for each row, what is computed for a token does not depend on the other tokens of the batch. The scales are powers of two, so
//! that the product may be computed without them, in bfloat16 or float32, and multiplied by them behind it: that does not round. libtorch
//! then only needs scales for whole matrices, which its FP8 products take on every GPU that has FP8.

use crate::native::cuda;
use std::cell::OnceCell;
use tch::{Kind, Tensor};

/// A matrix in FP8. Number (t, i) is `codes[t, i] * scales[t]`, rounded to 3 bits of fraction; below 2^-13 of the largest magnitude of its row
/// it may be rounded to a multiple of up to 2^-16 of that. A row with NaN or infinite numbers has NaN.
#[derive(Debug)]
pub struct RoundedRows {
    /// (T, in) float8_e4m3fn; the largest magnitude of a row is at least 128 and below 256.
    codes: Tensor,
    /// (T, 1): powers of two, in bfloat16 or float32.
    scales: Tensor,
}

/// Rows whose largest magnitude is below 2^-100 have the scale of this number, so that the reciprocal of a scale is finite.
const SMALLEST_EXPONENT: i64 = 127 - 100;

/// A row's scale is 2^-7 of the largest power of two in it.
const SHIFT: i64 = 7;

impl RoundedRows {
    /// Rounds the rows of x (T, in), in bfloat16, float16 or float32. On CUDA that is one launch of our own kernel, or six of libtorch's
    /// operations with the same bits.
    pub fn of(x: &Tensor) -> Self {
        match cuda::kernels_for_rows(&[x]) {
            Some(kernels) => {
                let (codes, scales) = kernels.round_rows(x);
                Self { codes, scales: scales.unsqueeze(-1) }
            }
            None => Self::composed(x),
        }
    }

    /// Does the same by libtorch's operations.
    fn composed(x: &Tensor) -> Self {
        // Dividing by a power of two does not round in bfloat16, which has the exponents of float32. In float16 it could.
        let x = if x.kind() == Kind::BFloat16 { x.shallow_clone() } else { x.to_kind(Kind::Float) };
        let (bits, fraction) = if x.kind() == Kind::BFloat16 { (Kind::Int16, 7) } else { (Kind::Int, 23) };
        let scales = x.norm_scalaropt_dim(f64::INFINITY, [-1i64].as_slice(), true);
        // The exponent of a floating-point number lies above its fraction; without the fraction it is a power of two.
        let mut exponents = scales.view_dtype(bits);
        let _ = exponents.bitwise_and_(0xff_i64 << fraction);
        let _ = exponents.clamp_min_(SMALLEST_EXPONENT << fraction);
        let _ = exponents.g_sub_scalar_(SHIFT << fraction);
        Self { codes: (x / &scales).to_kind(Kind::Float8e4m3fn), scales }
    }

    /// Computes the product with a matrix (in, out) in FP8 that is stored by columns, times its `scale` (1), in dtype `kind`, bfloat16 or
    /// float16: (T, out). `unit` (1) is 1 in float32. `fast`: sums may be kept in fewer bits than float32 has for some terms.
    pub fn product(&self, matrix: &Tensor, [unit, scale]: [&Tensor; 2], fast: bool, kind: Kind) -> Tensor {
        let y = self.unscaled_product(matrix, [unit, scale], fast, kind);
        scaled(y, &self.scales, kind)
    }

    /// Computes `sum + product`, like [`product`](Self::product); `sum` (T, out) may be overwritten.
    pub fn add_product(&self, mut sum: Tensor, matrix: &Tensor, scales: [&Tensor; 2], fast: bool) -> Tensor {
        let y = self.unscaled_product(matrix, scales, fast, sum.kind());
        if y.kind() == sum.kind() {
            return sum.addcmul_(&y, &self.scales);
        }
        sum.g_add_(&scaled(y, &self.scales, sum.kind()))
    }

    /// Computes the product without the scales of the rows, which could be too large for float16.
    fn unscaled_product(&self, matrix: &Tensor, [unit, scale]: [&Tensor; 2], fast: bool, kind: Kind) -> Tensor {
        let kind = if kind == Kind::BFloat16 { kind } else { Kind::Float };
        self.codes.internal_scaled_mm(matrix, unit, scale, None::<&Tensor>, None, kind, fast)
    }
}

/// Multiplies rows by their scales.
fn scaled(mut y: Tensor, scales: &Tensor, kind: Kind) -> Tensor {
    let y = y.g_mul_(scales);
    if y.kind() == kind { y } else { y.to_kind(kind) }
}

/// An input that several weights are multiplied with, rounded when the first of them needs it so.
#[derive(Debug, Default)]
pub struct SharedInput(OnceCell<RoundedRows>);

impl SharedInput {
    /// Returns the rows of x (T, in), rounded. Every call must be given the same x.
    pub fn rounded(&self, x: &Tensor) -> &RoundedRows {
        self.0.get_or_init(|| RoundedRows::of(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::kind::FLOAT_CPU;

    /// Returns the numbers that rounded rows stand for, in float64.
    fn numbers(rows: &RoundedRows) -> Tensor {
        rows.codes.to_kind(Kind::Float).to_kind(Kind::Double) * rows.scales.to_kind(Kind::Double)
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_of_their_row() {
        tch::manual_seed(5);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let sizes = Tensor::from_slice(&[1f32, 1e-4, 3e3, 0.37, 1.0, 1.0]).unsqueeze(-1);
            let x = (Tensor::randn([6, 80], FLOAT_CPU) * sizes).to_kind(kind);
            let wide = x.to_kind(Kind::Double);
            let largest = wide.abs().amax([-1i64].as_slice(), true);
            // Three bits of fraction: half a step is 2^-4 of a number; the smallest steps are 2^-9 of at most 2^-7 of the largest.
            let half_steps = (wide.abs() / 16.0).maximum(&(&largest * 2f64.powi(-17)));
            let excess = (numbers(&RoundedRows::of(&x)) - &wide).abs() - half_steps;
            assert!(excess.max().double_value(&[]) <= 0.0, "{kind:?}");
        }
    }

    #[test]
    fn rows_do_not_depend_on_each_other_and_scales_are_powers_of_two() {
        tch::manual_seed(6);
        let x = (Tensor::randn([9, 48], FLOAT_CPU) * 0.2).to_kind(Kind::BFloat16);
        let (all, one) = (RoundedRows::of(&x), RoundedRows::of(&x.narrow(0, 4, 1)));
        assert!(numbers(&all).narrow(0, 4, 1).equal(&numbers(&one)));
        let exponents = all.scales.to_kind(Kind::Double).log2();
        assert!(exponents.equal(&exponents.round()));
    }

    #[test]
    fn zeros_stay_zero_and_what_is_not_finite_is_nan() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let rows = [0.0, 0.0, 1e-38, -1e-39, f32::INFINITY, 1.0, f32::NAN, 2.0, 3e38, -1.0];
            let x = Tensor::from_slice(&rows).view([5, 2]).to_kind(kind);
            let found = Vec::<f64>::try_from(numbers(&RoundedRows::of(&x)).view([-1])).unwrap();
            assert_eq!(found[..4], [0.0; 4], "{kind:?}: below the smallest scale");
            assert!(found[4].is_nan() && found[6].is_nan(), "{kind:?}: {found:?}");
            assert!((found[8] / 3e38 - 1.0).abs() < 0.07, "{kind:?}: {found:?}");
        }
        let none = RoundedRows::of(&Tensor::zeros([0, 16], (Kind::BFloat16, Device::Cpu)));
        assert_eq!(none.codes.size(), [0, 16]);
    }
}
