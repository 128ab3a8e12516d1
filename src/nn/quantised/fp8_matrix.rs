//! FP8 (e4m3) with one scale for the matrix, and its products, which GPUs from compute capability 8.9 compute in FP8.
//!
//! Such a product rounds its other operand to FP8 as well, each row with a scale of its own ([`RoundedRows`]). The tensor cores take the rows of
//! both operands along the inner dimension, so the backward, whose inner dimension is that of the outputs, transposes the codes first: a
//! temporary of one byte for each number of the weight.

use super::fp8::Fp8Blocks;
use super::rounded_rows::RoundedRows;
use crate::error::Result;
use crate::machine;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The numbers of a weight. Number (o, i) is `codes[o, i] * scale`; the largest magnitude is that of the code 448.
#[derive(Debug)]
pub struct Fp8Matrix {
    /// (out, in) and (1, 1)
    numbers: Fp8Blocks,
    /// On a device that computes products with this matrix in FP8: 1 (1), float32, the scale of operands whose rows have scales.
    unit: Option<Tensor>,
}

/// Returns true if the device computes products in FP8: a GPU of compute capability 8.9 or newer.
pub fn has_fp8_products(device: Device) -> bool {
    matches!(device, Device::Cuda(index) if machine::cuda_capability(index).is_some_and(|c| c >= (8, 9)))
}

/// Returns true if libtorch's FP8 product takes a weight of this shape (out, in).
pub fn fits_fp8_products(shape: [i64; 2]) -> bool {
    const ALIGNED: i64 = 16;
    shape.iter().all(|size| *size > 0 && size % ALIGNED == 0)
}

impl Fp8Matrix {
    /// Quantises a float32 matrix (out, in) on the CPU and moves it to `device`. Fails for NaN and infinite values.
    pub fn quantise(weight: &Tensor, device: Device) -> Result<Self> {
        let (outputs, inputs) = weight.size2()?;
        let numbers = Fp8Blocks::quantise(weight, [outputs, inputs])?.to_device(device);
        let in_fp8 = has_fp8_products(device) && fits_fp8_products([outputs, inputs]);
        Ok(Self { numbers, unit: in_fp8.then(|| Tensor::ones([1], (Kind::Float, device))) })
    }

    /// Returns the codes and the scale.
    pub fn tensors(&self) -> Vec<&Tensor> {
        self.numbers.tensors()
    }

    /// Returns some rows in dtype `kind`: multiplied in float32 and rounded once.
    pub fn rows(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        self.numbers.rows(rows, kind)
    }

    /// Returns true if the product with a tensor like x is computed in FP8: in half precision, on a device and for a shape that have such
    /// products. The number of rows makes no difference, but there must be some.
    pub fn multiplies_in_fp8(&self, x: &Tensor) -> bool {
        self.unit.is_some() && matches!(x.kind(), Kind::BFloat16 | Kind::Half) && x.numel() > 0
    }

    /// Computes `x W^T` in FP8, in dtype `kind`: (T, in) -> (T, out).
    ///
    /// # Panics
    /// Unless the product is [computed in FP8](Self::multiplies_in_fp8).
    pub fn product(&self, x: &RoundedRows, kind: Kind) -> Tensor {
        let (codes, scales) = self.operand();
        x.product(&codes.tr(), scales, true, kind)
    }

    /// Computes `sum + g W` in FP8, in the dtype of g: (T, out) -> (T, in). Sums keep float32's bits, because gradients are summed on.
    ///
    /// # Panics
    /// Unless the product is [computed in FP8](Self::multiplies_in_fp8).
    pub fn product_back(&self, g: &Tensor, sum: Option<Tensor>) -> Tensor {
        let (codes, scales) = self.operand();
        let (g, kind, columns) = (RoundedRows::of(g), g.kind(), codes.tr().contiguous());
        match sum {
            Some(sum) => g.add_product(sum, &columns.tr(), scales, false),
            None => g.product(&columns.tr(), scales, false, kind),
        }
    }

    /// Returns the codes (out, in), and the scales of the other operand and of the codes.
    fn operand(&self) -> (&Tensor, [&Tensor; 2]) {
        let [codes, scale] = self.numbers.tensors()[..] else { unreachable!("codes and scales") };
        (codes, [self.unit.as_ref().expect("a product that is computed in FP8"), scale])
    }
}
