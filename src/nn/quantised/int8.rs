//! int8 with a scale for each row, as in bitsandbytes (`int8_vectorwise_quant`, without outliers).

use super::scales::{not_finite, require_finite};
use crate::error::Result;
use crate::native::quantised::{Codes, QuantisedMatrix, ScaleTensors};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// 1 / 127 as bitsandbytes rounds it.
const STEP: f64 = 7.874_015_718_698_502e-3;

/// Numbers of a matrix that are quantised together where it is read in parts: 4 MiB in float32.
const QUANTISED_TOGETHER: i64 = 1 << 20;

/// The numbers of a weight in 8 bits: `code * scale / 127`.
#[derive(Debug)]
pub struct Int8Rows {
    /// (out, in) int8
    codes: Tensor,
    /// (out) float32: the largest magnitude of each row.
    scales: Tensor,
}

impl Int8Rows {
    /// Quantises a matrix (out, in), some rows at a time, on the CPU, and moves it to `device`. `rows` returns the numbers of
    /// a range of rows in any dtype. Fails for NaN and infinite values, and if `rows` does.
    pub fn quantise_by_rows(
        [outputs, inputs]: [i64; 2],
        device: Device,
        mut rows: impl FnMut(Range<i64>) -> Result<Tensor>,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let codes = Tensor::empty([outputs, inputs], (Kind::Int8, device));
        let scales = Tensor::empty([outputs], (Kind::Float, device));
        let most = (QUANTISED_TOGETHER / inputs.max(1)).max(1);
        for start in (0..outputs).step_by(most as usize) {
            let end = (start + most).min(outputs);
            let part = Self::quantise(&rows(start..end)?.to_kind(Kind::Float), device)?;
            let put = |all: &Tensor, part: &Tensor| all.narrow(0, start, end - start).copy_(part);
            put(&codes, &part.codes);
            put(&scales, &part.scales);
        }
        Ok(Self { codes, scales })
    }

    /// Quantises a float32 matrix (out, in) on the CPU and moves it to `device`. Fails for NaN and infinite values.
    pub fn quantise(weight: &Tensor, device: Device) -> Result<Self> {
        let scales = weight.abs().amax([1i64].as_slice(), false);
        if scales.isfinite().all().int64_value(&[]) == 0 {
            return Err(not_finite());
        }
        // A row of zeros has codes of zero; the bound only avoids a division by zero.
        let factor = scales.clamp_min(f64::from(f32::MIN_POSITIVE)).reciprocal() * 127.0;
        let codes = (weight * factor.unsqueeze(-1)).round_().to_kind(Kind::Int8);
        Ok(Self { codes: codes.to_device(device), scales: scales.to_device(device) })
    }

    /// Takes codes (out, in) and scales (out) of a checkpoint to `device`. Fails if a scale is not finite.
    pub fn stored(codes: &Tensor, scales: &Tensor, device: Device) -> Result<Self> {
        require_finite(scales)?;
        Ok(Self { codes: codes.to_device(device), scales: scales.to_device(device) })
    }

    /// Returns the rows with these numbers (n), int64 on the weight's device, in their order: a copy of their codes.
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { codes: self.codes.index_select(0, rows), scales: self.scales.index_select(0, rows) }
    }

    /// Returns the codes and the scales.
    pub fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.codes, &self.scales]
    }

    /// Returns the matrix as the CPU's kernels read it.
    pub fn matrix(&self, shape: [i64; 2]) -> QuantisedMatrix<'_> {
        QuantisedMatrix::new(shape, &self.codes, Codes::Int8, ScaleTensors::Plain(&self.scales))
    }

    /// Returns some rows on a GPU, in dtype `kind`.
    pub fn rows_on_device(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        let part = |t: &Tensor| t.narrow(0, rows.start, rows.end - rows.start);
        let mut numbers = part(&self.codes).to_kind(Kind::Float);
        numbers *= part(&self.scales).unsqueeze(-1);
        numbers *= STEP;
        numbers.to_kind(kind)
    }
}
