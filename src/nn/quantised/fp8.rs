//! FP8: floating-point numbers of 8 bits (e4m3: a sign, 4 bits of exponent, 3 of fraction; no infinities, the largest is 448), in
//! rectangular blocks that share a scale (DeepSeek-AI 2024, arXiv 2412.19437, section 3.3). Blocks at the right and lower edge
//! may be smaller.

use super::scales::{not_finite, require_finite};
use crate::error::Result;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The largest number of the format.
const LARGEST: f64 = 448.0;

/// The numbers of a weight. Number (o, i) is `codes[o, i] * scales[o / block[0], i / block[1]]`.
#[derive(Debug)]
pub struct Fp8Blocks {
    /// (out, in) float8_e4m3fn
    codes: Tensor,
    /// (out / block[0], in / block[1]) float32, both rounded up
    scales: Tensor,
    /// Outputs and inputs of a block.
    block: [i64; 2],
}

impl Fp8Blocks {
    /// Rounds float32 numbers (out, in) on the CPU with the bits of transformers' `Fp8Quantize`: the largest magnitude of a
    /// block becomes 448. Fails if a number is NaN or infinite.
    pub fn quantise(numbers: &Tensor, block: [i64; 2]) -> Result<Self> {
        let (outputs, inputs) = numbers.size2()?;
        let fill = |size: i64, block: i64| (block - size % block) % block;
        let whole = numbers.constant_pad_nd([0, fill(inputs, block[1]), 0, fill(outputs, block[0])].as_slice());
        let (rows, columns) = whole.size2()?;
        let blocks = whole.view([rows / block[0], block[0], columns / block[1], block[1]]);
        let largest = blocks.abs().amax([1i64, 3].as_slice(), true);
        if largest.isfinite().all().int64_value(&[]) == 0 {
            return Err(not_finite());
        }
        // Of numbers near the smallest ones the factor would be infinite; a block of zeros has the scale 1.
        let factors = (largest.reciprocal() * LARGEST).clamp_max(f64::from(f32::MAX));
        let factors = factors.where_self(&largest.gt(0.0), &largest.ones_like());
        let scaled = (blocks * &factors).clamp(-LARGEST, LARGEST).view([rows, columns]);
        let codes = scaled.narrow(0, 0, outputs).narrow(1, 0, inputs).contiguous().to_kind(Kind::Float8e4m3fn);
        Ok(Self { codes, scales: factors.reciprocal().squeeze_dim(3).squeeze_dim(1), block })
    }

    /// Takes the numbers of a checkpoint to `device`: `codes` (out, in) float8_e4m3fn, `scales` (out / block[0], in / block[1]),
    /// both rounded up. Fails if a scale is NaN or infinite.
    pub fn stored(codes: &Tensor, scales: &Tensor, block: [i64; 2], device: Device) -> Result<Self> {
        let scales = scales.to_kind(Kind::Float);
        require_finite(&scales)?;
        Ok(Self { codes: codes.to_device(device), scales: scales.to_device(device), block })
    }

    /// Returns the same numbers on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        let Self { codes, scales, block } = self;
        Self { codes: codes.to_device(device), scales: scales.to_device(device), block: *block }
    }

    /// Returns the codes and the scales.
    pub fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.codes, &self.scales]
    }

    /// Returns some rows in dtype `kind`, by libtorch's operations: multiplied in float32 and rounded once.
    pub fn rows(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        let device = self.codes.device();
        let mut numbers = self.codes.narrow(0, rows.start, rows.end - rows.start).to_kind(Kind::Float);
        if self.scales.numel() == 1 {
            numbers *= &self.scales;
            return numbers.to_kind(kind);
        }
        let block_of = |range: Range<i64>, size: i64| {
            Tensor::arange_start(range.start, range.end, (Kind::Int64, device)).divide_scalar_mode(size, "floor")
        };
        let scales = self.scales.index_select(0, &block_of(rows, self.block[0]));
        let scales = scales.index_select(1, &block_of(0..self.codes.size()[1], self.block[1]));
        (numbers * scales).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::kind::FLOAT_CPU;

    #[test]
    fn numbers_are_rounded_to_the_nearest_of_their_block() {
        tch::manual_seed(11);
        for (shape, block) in [([6, 10], [4, 4]), ([8, 8], [4, 8]), ([3, 5], [128, 128])] {
            let w = Tensor::randn(shape, FLOAT_CPU) * 0.03;
            let blocks = Fp8Blocks::quantise(&w, block).unwrap();
            let up = |i: usize| (shape[i] + block[i] - 1) / block[i];
            assert_eq!(blocks.tensors()[1].size(), [up(0), up(1)]);
            let found = blocks.rows(0..shape[0], Kind::Float);
            for o in 0..shape[0] {
                for i in 0..shape[1] {
                    let scale = blocks.tensors()[1].double_value(&[o / block[0], i / block[1]]);
                    let (x, y) = (w.double_value(&[o, i]), found.double_value(&[o, i]));
                    // Three bits of fraction: half a step is 2^-4 of the number; below 2^-6 steps are 2^-9.
                    let step = (x.abs() / 16.0).max(scale / 1024.0);
                    assert!((x - y).abs() <= step * 1.000_01, "{o} {i}: {x} {y}");
                }
            }
            assert!(found.narrow(0, 1, 2).equal(&blocks.rows(1..3, Kind::Float)), "parts are those of the whole");
        }
    }

    #[test]
    fn zeros_tiny_numbers_and_outliers_stay_finite() {
        let w = Tensor::from_slice(&[0.0f32, 0.0, 1e-40, -1e-38, 3e38, 1.0, 0.0, -448.0]).view([2, 4]);
        let blocks = Fp8Blocks::quantise(&w, [1, 2]).unwrap();
        let found = Vec::<f32>::try_from(blocks.rows(0..2, Kind::Float).view([-1])).unwrap();
        assert_eq!((found[0], found[1], found[7]), (0.0, 0.0, -448.0));
        assert!(found.iter().all(|x| x.is_finite()), "{found:?}");
        assert!((found[4] / 3e38 - 1.0).abs() < 1e-6 && (found[3] + 1e-38).abs() < 1e-39, "{found:?}");
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Fp8Blocks::quantise(&Tensor::from_slice(&[bad, 1.0]).view([1, 2]), [2, 2]).unwrap_err();
            assert!(error.message().contains("NaN or infinite"), "{error}");
        }
    }
}
