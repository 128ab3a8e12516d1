//! MXFP4 (OCP Microscaling Formats 1.0, 2023; Rouhani et al. 2023, arXiv 2310.10537): numbers of 4 bits (e2m1) in groups of 32
//! inputs that share a power of two (e8m0), as gpt-oss's experts are stored.

use crate::error::{Error, Result};
use crate::native::quantised::{Codes, QuantisedMatrix, ScaleTensors};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Numbers that share an exponent.
pub const GROUP: i64 = 32;
/// The values of the codes: a sign, two bits of exponent, one of fraction.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// The exponent that stands for NaN.
const NAN: i64 = 255;

/// The numbers of a weight.
#[derive(Debug)]
pub struct Mxfp4Groups {
    /// (out, in / 2) uint8, of two numbers the first in the upper half.
    codes: Tensor,
    /// (out, in / 32) uint8; e stands for 2^(e - 127).
    exponents: Tensor,
    /// The values of the codes, on a GPU.
    values: Option<Tensor>,
}

impl Mxfp4Groups {
    /// Takes numbers as checkpoints have them to `device`: `codes` (out, in / 2) uint8, of two numbers the first in the lower
    /// half, and `exponents` (out, in / 32) uint8. Fails if an exponent stands for NaN.
    pub fn stored(codes: &Tensor, exponents: &Tensor, device: Device) -> Result<Self> {
        let broken = exponents.eq(NAN);
        if broken.any().int64_value(&[]) != 0 {
            let at = broken.reshape([-1]).to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]);
            let groups = exponents.size()[1];
            return Err(Error::user(format!(
                "the scale of group {} in row {} (both counted from 0) is NaN",
                at % groups,
                at / groups
            ))
            .hint("the file is damaged: fetch it again"));
        }
        let turned =
            codes.bitwise_left_shift_tensor_scalar(4).bitwise_or_tensor(&codes.bitwise_right_shift_tensor_scalar(4));
        let values = device.is_cuda().then(|| Tensor::from_slice(&VALUES).to_device(device));
        let [codes, exponents] = [turned, exponents.contiguous()].map(|t| t.to_device(device));
        Ok(Self { codes, exponents, values })
    }

    /// Takes numbers in blocks of ggml's type to `device`: (out, in / 32, 17) uint8, the exponent and 16 bytes, whose lower halves are
    /// the first 16 numbers and whose upper halves are the last. Fails if an exponent stands for NaN.
    pub fn of_ggml(blocks: &Tensor, device: Device) -> Result<Self> {
        let (outputs, groups, _) = blocks.size3()?;
        let halves = blocks.narrow(2, 1, GROUP / 2);
        let upper = halves.bitwise_right_shift_tensor_scalar(4);
        let numbers = Tensor::cat(&[halves.bitwise_and(15), upper], 2).view([outputs, groups * GROUP / 2, 2]);
        let codes = numbers.select(2, 0).bitwise_or_tensor(&numbers.select(2, 1).bitwise_left_shift_tensor_scalar(4));
        Self::stored(&codes, &blocks.select(2, 0), device)
    }

    /// Returns the numbers in blocks of ggml's type: (out, in / 32, 17) uint8.
    pub fn to_ggml(&self) -> Tensor {
        let (outputs, groups) = self.exponents.size2().expect("exponents of groups");
        let upper = self.codes.bitwise_right_shift_tensor_scalar(4);
        let numbers = Tensor::stack(&[upper, self.codes.bitwise_and(15)], -1).view([outputs, groups, 2, GROUP / 2]);
        let bytes = numbers.select(2, 0).bitwise_or_tensor(&numbers.select(2, 1).bitwise_left_shift_tensor_scalar(4));
        Tensor::cat(&[self.exponents.unsqueeze(-1), bytes], 2)
    }

    /// Makes numbers that take no memory, with the shapes of those of a matrix (out, in) on the CPU.
    pub fn outline([outputs, inputs]: [i64; 2]) -> Self {
        let bytes = |columns| Tensor::zeros([1, 1], (Kind::Uint8, Device::Cpu)).expand([outputs, columns], false);
        Self { codes: bytes(inputs / 2), exponents: bytes(inputs / GROUP), values: None }
    }

    /// Returns the codes and the exponents.
    pub fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.codes, &self.exponents]
    }

    /// Returns the matrix as the CPU's kernels read it.
    pub fn matrix(&self, shape: [i64; 2]) -> QuantisedMatrix<'_> {
        let meaning = Codes::Exponents { values: &VALUES, group: GROUP, exponents: &self.exponents };
        QuantisedMatrix::new(shape, &self.codes, meaning, ScaleTensors::InCodes)
    }

    /// Returns some rows by libtorch's operations, in dtype `kind`.
    pub fn rows_on_device(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        let part = |t: &Tensor| t.narrow(0, rows.start, rows.end - rows.start);
        let codes = part(&self.codes);
        let own = || Tensor::from_slice(&VALUES).to_device(codes.device());
        let values = self.values.as_ref().map_or_else(own, Tensor::shallow_clone);
        let halves = Tensor::stack(&[codes.bitwise_right_shift_tensor_scalar(4), codes.bitwise_and(15)], -1).view([-1]);
        // The bits of a float32 power of two are its exponent; that of 2^-127, which is no normal number, is 0.
        let exponents = part(&self.exponents).to_kind(Kind::Int);
        let bits = exponents.bitwise_left_shift_tensor_scalar(23) + exponents.eq(0).to_kind(Kind::Int) * (1_i64 << 22);
        let scales = bits.view_dtype(Kind::Float).unsqueeze(-1); // (rows, groups, 1)
        let numbers = values.index_select(0, &halves.to_kind(Kind::Int)).view([codes.size()[0], -1, GROUP]);
        (numbers * scales).view([codes.size()[0], -1]).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::quant::{GgmlType, dequantise};

    /// Blocks of ggml have the same numbers, and become the same blocks again.
    #[test]
    fn blocks_of_ggml_are_the_same_numbers() {
        tch::manual_seed(8);
        let bytes = (Kind::Uint8, Device::Cpu);
        let blocks = Tensor::randint(255, [5, 3, 17], bytes);
        let groups = Mxfp4Groups::of_ggml(&blocks, Device::Cpu).unwrap();
        assert!(groups.to_ggml().equal(&blocks));
        let expected = dequantise(GgmlType::MXFP4, &Vec::<u8>::try_from(blocks.view([-1])).unwrap());
        let found = groups.rows_on_device(0..5, Kind::Float);
        assert!(found.equal(&Tensor::from_slice(&expected).view([5, 96])));
    }

    /// Both compute what the definition says, for every code and every exponent.
    #[test]
    fn libtorchs_operations_give_the_bits_of_the_kernels() {
        let bytes = (Kind::Uint8, Device::Cpu);
        let (outputs, inputs) = (255, 96);
        tch::manual_seed(6);
        let codes = Tensor::randint(256, [outputs, inputs / 2], bytes);
        let exponents = Tensor::arange(255, bytes).view([-1, 1]).repeat([1, 3]);
        let groups = Mxfp4Groups::stored(&codes, &exponents, Device::Cpu).unwrap();
        let bits = |t: &Tensor| t.contiguous().view_dtype(Kind::Int);
        let expected = Tensor::stack(&[codes.bitwise_and(15), codes.bitwise_right_shift_tensor_scalar(4)], -1);
        let expected = Tensor::from_slice(&VALUES).index_select(0, &expected.view([-1]).to_kind(Kind::Int));
        let power = (Tensor::arange(255, (Kind::Double, Device::Cpu)) - 127.0).exp2().view([-1, 1]);
        let expected = (expected.view([outputs, inputs]).to_kind(Kind::Double) * power).to_kind(Kind::Float);
        for rows in [0..outputs, 64..130] {
            let expected = expected.narrow(0, rows.start, rows.end - rows.start);
            let by_kernels = groups.matrix([outputs, inputs]).rows(rows.clone(), Kind::Float);
            assert!(bits(&by_kernels).equal(&bits(&expected)), "{rows:?}");
            assert!(bits(&groups.rows_on_device(rows.clone(), Kind::Float)).equal(&bits(&expected)), "{rows:?}");
            let half = groups.matrix([outputs, inputs]).rows(rows.clone(), Kind::BFloat16);
            assert!(groups.rows_on_device(rows, Kind::BFloat16).equal(&half));
        }
        let told = Mxfp4Groups::stored(&codes, &(exponents + 1), Device::Cpu).unwrap_err();
        assert!(told.message().contains("group 0 in row 254"), "{}", told.message());
    }
}
