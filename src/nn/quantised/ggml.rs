//! Weights in the blocks of ggml, as they lie in a GGUF file. Nothing is unpacked: the bytes may be a view of the mapped
//! file. `gguf::quant` describes the formats.
//!
//! A row is a whole number of blocks, so that rows can be looked up and reordered without dequantising them.

use crate::error::{Error, Result};
use crate::gguf::quant::{FOUR_BIT_LEVELS, GgmlType};
use crate::native::quantised::QuantisedMatrix;
use std::ops::Range;
use tch::{Kind, Tensor};

/// The numbers of a weight in blocks of one type.
#[derive(Debug)]
pub struct GgmlBlocks {
    kind: GgmlType,
    /// (out, bytes of a row) uint8
    blocks: Tensor,
}

impl GgmlBlocks {
    /// Takes the blocks of a matrix (out, in): its bytes, uint8 and contiguous, at any address. Fails if they are not
    /// those of such a matrix, or if a scale is NaN or infinite.
    pub fn new(kind: GgmlType, [outputs, inputs]: [i64; 2], blocks: &Tensor) -> Result<Self> {
        let (name, elements) = (kind.name(), kind.block_elements() as i64);
        if elements == 1 {
            return Err(Error::bug(format!("{name} has no blocks: such a weight is a plain tensor")));
        }
        if kind == GgmlType::MXFP4 {
            return Err(Error::bug(format!("{name} has a form of its own, `Mxfp4Groups`")));
        }
        if inputs % elements != 0 || inputs == 0 {
            return Err(damaged(format!(
                "rows of {inputs} numbers are no whole number of {name} blocks of {elements}"
            )));
        }
        let row = inputs / elements * kind.block_bytes() as i64;
        let found = blocks.numel() as i64;
        if blocks.kind() != Kind::Uint8 || !blocks.is_contiguous() {
            return Err(Error::bug(format!("{name} blocks in a tensor of {:?}", blocks.kind())));
        }
        if found != outputs * row {
            let expected = outputs * row;
            return Err(damaged(format!(
                "{found} bytes found, but {outputs} x {inputs} numbers in {name} take {expected}"
            )));
        }
        let made = Self { kind, blocks: blocks.view([outputs, row]) };
        made.check_scales()?;
        Ok(made)
    }

    /// Fails if a scale is NaN or infinite, and says which numbers it belongs to.
    fn check_scales(&self) -> Result<()> {
        for at in self.kind.scale_offsets() {
            let broken = self.parts().half(*at as i64).isfinite().logical_not().view([-1]);
            if broken.any().int64_value(&[]) == 0 {
                continue;
            }
            let elements = self.kind.block_elements() as i64;
            let number = broken.to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]) * elements;
            let columns = self.columns();
            let (row, column) = (number / columns, number % columns);
            let last = column + elements - 1;
            return Err(damaged(format!(
                "the {} scale of columns {column} to {last} in row {row} (both counted from 0) is NaN or infinite",
                self.name()
            )));
        }
        Ok(())
    }

    /// Returns the type's name.
    pub fn name(&self) -> String {
        self.kind.name()
    }

    fn columns(&self) -> i64 {
        self.blocks.size()[1] / self.kind.block_bytes() as i64 * self.kind.block_elements() as i64
    }

    /// Returns the blocks.
    pub fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.blocks]
    }

    /// Returns the matrix as the CPU's kernels read it.
    pub fn matrix(&self, shape: [i64; 2]) -> QuantisedMatrix<'_> {
        QuantisedMatrix::of_ggml_blocks(shape, &self.blocks, self.kind.id())
    }

    /// Returns the rows with these numbers (n), int64 on the weight's device, in their order: a copy of their blocks.
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { kind: self.kind, blocks: self.blocks.index_select(0, rows) }
    }

    /// Dequantises some rows by libtorch's operations, on any device: (rows, in) in dtype `kind`.
    pub fn rows_on_device(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        let count = rows.end - rows.start;
        let part = Self { kind: self.kind, blocks: self.blocks.narrow(0, rows.start, count) };
        part.parts().numbers(self.kind).view([count, self.columns()]).to_kind(kind)
    }

    fn parts(&self) -> BlockParts {
        BlockParts(self.blocks.contiguous().view([-1, self.kind.block_bytes() as i64]))
    }
}

/// Returns the error for blocks that cannot be those of the weight.
fn damaged(what: String) -> Error {
    Error::user(what).hint("the file is damaged or not complete: fetch it again")
}

/// The parts of n blocks of one type: (n, bytes) uint8.
struct BlockParts(Tensor);

impl BlockParts {
    /// Returns the bytes [at, at + count) of each block: (n, count).
    fn bytes(&self, at: i64, count: i64) -> Tensor {
        self.0.narrow(1, at, count)
    }

    /// Returns a float16 number of each block in float32: (n, 1).
    fn half(&self, at: i64) -> Tensor {
        // A view of another type needs an aligned start, which the bytes of a file need not have.
        self.bytes(at, 2).copy().view_dtype(Kind::Half).to_kind(Kind::Float)
    }

    /// Returns the numbers (n, elements) in float32. Each has the bits of `gguf::quant::dequantise`.
    fn numbers(&self, kind: GgmlType) -> Tensor {
        let (d, float) = (|at| self.half(at), |q: Tensor| q.to_kind(Kind::Float));
        // Numbers of 4 bits, and such with upper bits from elsewhere.
        let nibbles = |at, count| planes(&self.bytes(at, count), count, 4);
        let with = |low: Tensor, high: Tensor| low.bitwise_or_tensor(&high.bitwise_left_shift_tensor_scalar(4));
        match kind {
            GgmlType::Q4_0 => d(0) * (float(nibbles(2, 16)) - 8.0),
            GgmlType::IQ4_NL => {
                let levels = Tensor::from_slice(&FOUR_BIT_LEVELS.map(f32::from)).to_device(self.0.device());
                let codes = nibbles(2, 16).to_kind(Kind::Int64);
                d(0) * levels.index_select(0, &codes.view([-1])).view_as(&codes)
            }
            GgmlType::Q4_1 => d(0) * float(nibbles(4, 16)) + d(2),
            GgmlType::Q5_0 => d(0) * (float(with(nibbles(6, 16), planes(&self.bytes(2, 4), 1, 1))) - 16.0),
            GgmlType::Q5_1 => d(0) * float(with(nibbles(8, 16), planes(&self.bytes(4, 4), 1, 1))) + d(2),
            GgmlType::Q8_0 => d(0) * float(self.bytes(2, 32).view_dtype(Kind::Int8)),
            GgmlType::Q2_K => {
                let scales = self.bytes(0, 16);
                let q = float(planes(&self.bytes(16, 64), 32, 2)).view([-1, 16, 16]);
                let scale = float(scales.bitwise_and(15)) * d(80);
                let least = float(scales.bitwise_right_shift_tensor_scalar(4)) * d(82);
                scale.unsqueeze(2) * q - least.unsqueeze(2)
            }
            GgmlType::Q3_K => {
                let scale = with(nibbles(96, 8), planes(&self.bytes(104, 4), 4, 2));
                let scale = d(108) * (float(scale) - 32.0);
                let upper = float(planes(&self.bytes(0, 32), 32, 1)) * 4.0;
                let q = float(planes(&self.bytes(32, 64), 32, 2)) + upper - 4.0;
                scale.unsqueeze(2) * q.view([-1, 16, 16])
            }
            GgmlType::Q4_K => self.groups_of_32(planes(&self.bytes(16, 128), 32, 4)),
            GgmlType::Q5_K => {
                self.groups_of_32(with(planes(&self.bytes(48, 128), 32, 4), planes(&self.bytes(16, 32), 32, 1)))
            }
            GgmlType::Q6_K => {
                let q = with(planes(&self.bytes(0, 128), 64, 4), planes(&self.bytes(128, 64), 32, 2));
                let scale = d(208) * float(self.bytes(192, 16).view_dtype(Kind::Int8));
                scale.unsqueeze(2) * (float(q) - 32.0).view([-1, 16, 16])
            }
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => {
                unreachable!("refused when the weight is made")
            }
        }
    }

    /// Returns the numbers of Q4_K or Q5_K blocks, given their codes (n, 256): `d s q - dmin t`, with six-bit s and t of
    /// each group, packed into 12 bytes.
    fn groups_of_32(&self, codes: Tensor) -> Tensor {
        let [scales, minima, rest] = [4, 8, 12].map(|at| self.bytes(at, 4));
        let joined = |first: &Tensor, low: Tensor| {
            let upper = first.bitwise_right_shift_tensor_scalar(2).bitwise_and(0x30);
            Tensor::cat(&[first.bitwise_and(0x3F), low.bitwise_or_tensor(&upper)], 1).to_kind(Kind::Float)
        };
        let scale = self.half(0) * joined(&scales, rest.bitwise_and(0x0F));
        let least = self.half(2) * joined(&minima, rest.bitwise_right_shift_tensor_scalar(4));
        scale.unsqueeze(2) * codes.to_kind(Kind::Float).view([-1, 8, 32]) - least.unsqueeze(2)
    }
}

/// Splits bytes (n, count) into numbers of `bits` bits (n, 8 / bits · count). Of each `run` bytes first come the lowest
/// bits of all, then the next higher ones.
fn planes(bytes: &Tensor, run: i64, bits: i64) -> Tensor {
    let shifts = Tensor::arange_start_step(0, 8, bits, (Kind::Uint8, bytes.device())).view([-1, 1]);
    let bytes = bytes.contiguous();
    let parts = bytes.view([bytes.size()[0], -1, 1, run]).bitwise_right_shift(&shifts).bitwise_and((1 << bits) - 1);
    parts.view([bytes.size()[0], -1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::quant::dequantise;
    use half::f16;
    use rand::{Rng, RngExt};
    use tch::Device;

    /// What a GPU computes has the bits of the CPU's kernels and of `gguf::quant`.
    #[test]
    fn libtorchs_operations_give_the_bits_of_the_kernels() {
        let types = (0..32).filter_map(|id| GgmlType::from_id(id).ok()).filter(|kind| kind.block_elements() > 1);
        for (i, kind) in types.enumerate() {
            let shape @ [rows, columns] = [5, 2 * kind.block_elements() as i64];
            let mut rng = crate::rng::stream(7, "blocks", i as u64);
            let mut bytes = vec![0; 10 * kind.block_bytes()];
            rng.fill_bytes(&mut bytes);
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                for at in kind.scale_offsets() {
                    let scale = f16::from_f32(rng.random_range(-1.0..1.0));
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            let blocks = GgmlBlocks::new(kind, shape, &Tensor::from_slice(&bytes)).unwrap();
            let expected = Tensor::from_slice(&dequantise(kind, &bytes)).view([rows, columns]);
            let bits = |t: &Tensor| t.contiguous().view_dtype(Kind::Int);
            for range in [0..rows, 1..4, 4..5] {
                let expected = expected.narrow(0, range.start, range.end - range.start);
                let found = blocks.rows_on_device(range.clone(), Kind::Float);
                assert!(bits(&found).equal(&bits(&expected)), "{kind:?} {range:?}");
                let by_kernels = blocks.matrix(shape).rows(range.clone(), Kind::Float);
                assert!(bits(&by_kernels).equal(&bits(&expected)), "{kind:?} {range:?}");
                assert!(blocks.rows_on_device(range, Kind::BFloat16).equal(&expected.to_kind(Kind::BFloat16)));
            }
            let picked = blocks.select(&Tensor::from_slice(&[3i64, 3, 0]).to_device(Device::Cpu));
            let expected = expected.index_select(0, &Tensor::from_slice(&[3i64, 3, 0]));
            assert!(picked.rows_on_device(0..3, Kind::Float).equal(&expected), "{kind:?}");
        }
    }
}
