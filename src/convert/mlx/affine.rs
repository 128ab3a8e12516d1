//! mlx's affine format: whole numbers of 4 or 8 bits in groups of inputs that share a scale and an offset, w ≈ scale · q + offset.
//!
//! mlx calls the offsets `biases`. A matrix (out, in) is three tensors: `weight` (out, in · bits / 32), whole numbers packed into
//! 32 bits, the first in the lowest bits; `scales` and `biases` (out, in / group) in the model's dtype. The rule by which a group
//! gets its scale is that of `mlx.core.quantize`: the bound of larger magnitude is a number of the grid, and so is zero.

use crate::error::{Error, Result};
use crate::nn::weight::cast;
use tch::{Kind, Tensor};

/// The smallest scale.
const SMALLEST: f64 = 1e-7;

/// How matrices are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AffineFormat {
    /// 2, 4 or 8 bits a number.
    pub bits: i64,
    /// Inputs of a group.
    pub group: i64,
}

/// A matrix in the format.
pub(super) struct AffineMatrix {
    /// (out, in · bits / 32) in 32 bits, whose sign means nothing.
    pub codes: Tensor,
    /// (out, in / group)
    pub scales: Tensor,
    /// (out, in / group)
    pub biases: Tensor,
}

impl AffineFormat {
    /// Returns how many numbers are in 32 bits.
    fn packed(self) -> i64 {
        32 / self.bits
    }

    /// Returns true if a matrix with so many inputs can be quantised.
    pub fn divides(self, inputs: i64) -> bool {
        inputs % self.group == 0
    }

    /// Quantises a matrix (out, in), whose inputs the groups divide; `kind`: the dtype of the scales.
    pub fn quantise(self, matrix: &Tensor, kind: Kind) -> Result<AffineMatrix> {
        let (outputs, inputs) = matrix.size2()?;
        let bins = f64::from((1u32 << self.bits) - 1);
        // The numbers are those of the model's dtype, computed with in float32, as in mlx.
        let w = cast(matrix, kind).to_kind(Kind::Float).view([outputs, inputs / self.group, self.group]);
        let (low, high) = (w.amin([-1].as_slice(), true), w.amax([-1].as_slice(), true));
        let from_low = low.abs().gt_tensor(&high.abs());
        let scale = ((&high - &low) / bins).clamp_min(SMALLEST);
        let scale = scale.where_self(&from_low, &-&scale);
        let edge = low.where_self(&from_low, &high);
        let steps = (&edge / &scale).round();
        let reached = steps.not_equal(0);
        let scale = (&edge / &steps).where_self(&reached, &scale);
        let bias = edge.where_self(&reached, &edge.zeros_like());
        let q = ((&w - &bias) / &scale).round().clamp(0.0, bins).to_kind(Kind::Int64);
        let q = q.view([outputs, inputs / self.packed(), self.packed()]);
        let shifts = Tensor::arange(self.packed(), (Kind::Int64, q.device())) * self.bits;
        // The sum is below 2^32; its lowest 32 bits are the number.
        let codes = q.bitwise_left_shift(&shifts).sum_dim_intlist([-1].as_slice(), false, Kind::Int64);
        let codes = (&codes - codes.ge(1i64 << 31).to_kind(Kind::Int64) * (1i64 << 32)).to_kind(Kind::Int);
        let of_groups = |t: &Tensor| cast(&t.squeeze_dim(-1), kind).contiguous();
        Ok(AffineMatrix { codes, scales: of_groups(&scale), biases: of_groups(&bias) })
    }

    /// Returns the numbers (out, in) in float32. Fails if the tensors do not fit together; `name` is the matrix's, for the error.
    pub fn dense(self, name: &str, matrix: &AffineMatrix) -> Result<Tensor> {
        let AffineMatrix { codes, scales, biases } = matrix;
        let fits = codes.dim() == 2
            && scales.dim() == 2
            && scales.size() == biases.size()
            && codes.size()[0] == scales.size()[0]
            && codes.size()[1] * self.packed() == scales.size()[1] * self.group;
        if !fits || codes.kind() != Kind::Int {
            return Err(Error::user(format!(
                "`{name}` has codes {:?} ({:?}), scales {:?} and biases {:?}: no matrix of {} bits in groups of {}",
                codes.size(),
                codes.kind(),
                scales.size(),
                biases.size(),
                self.bits,
                self.group
            ))
            .hint("config.json and weights belong to different models: fetch it again"));
        }
        let (outputs, groups) = scales.size2()?;
        let shifts = Tensor::arange(self.packed(), (Kind::Int64, codes.device())) * self.bits;
        let q = codes.to_kind(Kind::Int64).unsqueeze(-1).bitwise_right_shift(&shifts);
        let q = q.bitwise_and((1i64 << self.bits) - 1).view([outputs, groups, self.group]).to_kind(Kind::Float);
        let wide = |t: &Tensor| t.to_kind(Kind::Float).unsqueeze(-1);
        Ok((q * wide(scales) + wide(biases)).view([outputs, groups * self.group]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Numbers are at most a step and a half from those of the grid, whose other end may be short of the group's, and the bound of
    /// larger magnitude is on it.
    #[test]
    fn numbers_are_rounded_to_the_grid_of_their_group() {
        for bits in [4, 8] {
            let format = AffineFormat { bits, group: 64 };
            let w = (Tensor::arange(3 * 128, (Kind::Float, Device::Cpu)) * 0.37).sin().view([3, 128]) * 2.5 - 0.3;
            let matrix = format.quantise(&w, Kind::Float).unwrap();
            assert_eq!((matrix.codes.size(), matrix.scales.size()), (vec![3, 128 * bits / 32], vec![3, 2]));
            let found = format.dense("w", &matrix).unwrap();
            let step = matrix.scales.abs().max().double_value(&[]);
            assert!((&found - &w).abs().max().double_value(&[]) <= 1.5 * step, "{bits}");
            let at = w.abs().argmax(-1, true);
            assert!((found.gather(1, &at, false) - w.gather(1, &at, false)).abs().max().double_value(&[]) < 1e-6);
        }
        // All equal, and all zero.
        let format = AffineFormat { bits: 4, group: 64 };
        for value in [0.0, 0.75, -2.0] {
            let w = Tensor::full([2, 64], value, (Kind::Float, Device::Cpu));
            let found = format.dense("w", &format.quantise(&w, Kind::BFloat16).unwrap()).unwrap();
            assert!((found - value).abs().max().double_value(&[]) < 1e-6, "{value}");
        }
    }

    /// tests/fixtures/mlx/affine.py has what mlx.core.quantize makes of these numbers.
    #[test]
    fn codes_scales_and_biases_are_those_of_mlx() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mlx/affine.safetensors");
        let all = crate::nn::Weights::open_file(std::path::Path::new(file)).unwrap().all();
        for bits in [4, 8] {
            for (name, kind) in [("f32", Kind::Float), ("bf16", Kind::BFloat16)] {
                let format = AffineFormat { bits, group: 64 };
                let made = format.quantise(&all["w"], kind).unwrap();
                let dense = format.dense("w", &made).unwrap();
                let found = [("codes", made.codes), ("scales", made.scales), ("biases", made.biases)];
                for (part, tensor) in found {
                    let expected = &all[&format!("{bits}.{name}.{part}")];
                    assert!(tensor.kind() == expected.kind() && tensor.equal(expected), "{bits} {name} {part}");
                }
                let expected = &all[&format!("{bits}.{name}.dense")];
                assert!((dense - expected).abs().max().double_value(&[]) < 1e-5, "{bits} {name}");
            }
        }
    }

    #[test]
    fn tensors_that_do_not_fit_together_are_named() {
        let format = AffineFormat { bits: 4, group: 64 };
        let w = Tensor::zeros([2, 128], (Kind::Float, Device::Cpu));
        let matrix = AffineMatrix {
            biases: Tensor::zeros([2, 1], (Kind::Float, Device::Cpu)),
            ..format.quantise(&w, Kind::Float).unwrap()
        };
        assert!(format.dense("q_proj", &matrix).unwrap_err().to_string().contains("`q_proj` has codes [2, 16]"));
    }
}
