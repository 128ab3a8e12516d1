//! NF4 and FP4: two numbers a byte, in blocks of 64 that share a scale, in the layout of bitsandbytes (`quantize_4bit`).
//! Blocks run over the rows: a row may begin in the middle of a block.

use super::code_book::FourBitCode;
use super::scales::Scales;
use super::settings::QuantisedFormat;
use crate::error::Result;
use crate::native::cuda;
use crate::native::quantised::{BLOCK, Codes, QuantisedMatrix, quantise_4bit};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The numbers of a weight in 4 bits.
#[derive(Debug)]
pub struct FourBitBlocks {
    format: QuantisedFormat,
    /// (numbers / 2, rounded up) uint8: of two numbers the first is in the upper half.
    codes: Tensor,
    scales: Scales,
    /// The 16 values of the codes, on a GPU.
    values: Option<Tensor>,
}

impl FourBitBlocks {
    /// Quantises float32 numbers on the CPU and moves them to `device`.
    pub fn quantise(numbers: &Tensor, format: QuantisedFormat, double: bool, device: Device) -> Result<Self> {
        let code = FourBitCode::of(format);
        let (codes, largest) = quantise_4bit(numbers, &code.borders, &code.order);
        Ok(Self::stored(format, &codes, Scales::new(largest, double, device)?, device))
    }

    /// Takes the codes of a checkpoint to `device`.
    pub fn stored(format: QuantisedFormat, codes: &Tensor, scales: Scales, device: Device) -> Self {
        let values = device.is_cuda().then(|| Tensor::from_slice(&FourBitCode::of(format).values).to_device(device));
        Self { format, codes: codes.to_device(device), scales, values }
    }

    /// Returns the codes and the tensors of the scales.
    pub fn tensors(&self) -> Vec<&Tensor> {
        std::iter::once(&self.codes).chain(self.scales.tensors()).collect()
    }

    /// Returns the scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Returns the matrix as the CPU's kernels read it.
    pub fn matrix(&self, shape: [i64; 2]) -> QuantisedMatrix<'_> {
        let values = &FourBitCode::of(self.format).values;
        QuantisedMatrix::new(shape, &self.codes, Codes::FourBits(values), self.scales.for_kernels())
    }

    /// Returns some rows of `columns` numbers on a GPU, in dtype `kind`. The first row begins a block.
    pub fn rows_on_device(&self, rows: Range<i64>, columns: i64, kind: Kind) -> Tensor {
        let (start, end) = (rows.start * columns, rows.end * columns);
        debug_assert!(start % BLOCK == 0);
        let (first, last) = (start / BLOCK, (end + BLOCK - 1) / BLOCK);
        let codes = self.codes.narrow(0, start / 2, (end + 1) / 2 - start / 2);
        let scales = self.scales.of_blocks(first..last).contiguous();
        let own = cuda::kernels(codes.device(), kind).filter(|_| self.format == QuantisedFormat::Nf4);
        let numbers = match own {
            Some(kernels) => kernels.dequantise_nf4(&codes, &scales),
            None => self.composed(&codes, &scales).to_kind(kind),
        };
        numbers.narrow(0, 0, end - start).view([rows.end - rows.start, columns])
    }

    /// Dequantises by libtorch's operations: float32, a whole number of blocks.
    fn composed(&self, codes: &Tensor, scales: &Tensor) -> Tensor {
        let own = || Tensor::from_slice(&FourBitCode::of(self.format).values).to_device(codes.device());
        let values = self.values.as_ref().map_or_else(own, Tensor::shallow_clone);
        let halves = Tensor::stack(&[codes.bitwise_right_shift_tensor_scalar(4), codes.bitwise_and(15)], 1).view([-1]);
        let fill = scales.size()[0] * BLOCK - halves.size()[0];
        let numbers = values.index_select(0, &halves.to_kind(Kind::Int)).constant_pad_nd([0, fill].as_slice());
        (numbers.view([-1, BLOCK]) * scales.unsqueeze(-1)).view([-1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a GPU computes where our own kernel does not run has the bits of the CPU's kernels.
    #[test]
    fn libtorchs_operations_give_the_bits_of_the_kernels() {
        tch::manual_seed(4);
        for (shape, rows) in [([64, 7], 0..64), ([128, 40], 64..128), ([3, 5], 0..3)] {
            let w = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            for format in [QuantisedFormat::Nf4, QuantisedFormat::Fp4] {
                for double in [false, true] {
                    let blocks = FourBitBlocks::quantise(&w, format, double, Device::Cpu).unwrap();
                    let expected = blocks.matrix(shape).rows(rows.clone(), Kind::Float);
                    assert!(blocks.rows_on_device(rows.clone(), shape[1], Kind::Float).equal(&expected), "{shape:?}");
                }
            }
        }
    }
}
