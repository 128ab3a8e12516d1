//! Weights that a checkpoint contains in the formats of bitsandbytes, as whole numbers in groups, in MXFP4 or in FP8; and what a
//! checkpoint in the formats of bitsandbytes and in FP8 is written from.

use super::blocks::FourBitBlocks;
use super::code_book::{FourBitCode, dynamic_values};
use super::fp8::Fp8Blocks;
use super::int8::Int8Rows;
use super::integer_groups::{GroupedCodes, IntegerGroups};
use super::mxfp4::Mxfp4Groups;
use super::scales::Scales;
use super::{Format, Numbers, Quantisation, QuantisedFormat, QuantisedWeight};
use crate::error::Result;
use crate::nn::weight::cast;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// The scales of 4-bit blocks as a checkpoint contains them.
pub enum BlockScales {
    /// (blocks) float32
    Plain(Tensor),
    /// `values[codes[b]] * scales[b / 256] + offset` for block b, with the dynamic code's values.
    Double {
        /// (blocks) uint8
        codes: Tensor,
        /// (blocks / 256, rounded up) float32
        scales: Tensor,
        /// Added to every scale.
        offset: f32,
    },
}

/// The names of formats for people.
const MXFP4: &str = "MXFP4";
const FP8: &str = "FP8 (e4m3)";

/// Returns the 16 values that the codes of a 4-bit format stand for.
///
/// # Panics
/// For formats of 8 bits.
pub fn four_bit_values(format: QuantisedFormat) -> &'static [f32; 16] {
    &FourBitCode::of(format).values
}

/// Returns the 256 values that the codes of scales stand for.
pub fn scale_values() -> &'static [f32; 256] {
    dynamic_values()
}

impl QuantisedWeight {
    /// Takes a matrix (out, in) of 4-bit numbers in blocks of 64, in the layout of bitsandbytes. `codes`: (numbers / 2,
    /// rounded up) uint8. Fails for scales that are NaN or infinite.
    ///
    /// # Panics
    /// When it is first multiplied, if the tensors do not have the sizes that the matrix needs.
    pub fn of_blocks(
        format: QuantisedFormat,
        shape: [i64; 2],
        codes: &Tensor,
        scales: BlockScales,
        device: Device,
    ) -> Result<Self> {
        let double = matches!(scales, BlockScales::Double { .. });
        let scales = match scales {
            BlockScales::Plain(scales) => Scales::stored(&scales, device)?,
            BlockScales::Double { codes, scales, offset } => Scales::stored_double(&codes, &scales, offset, device)?,
        };
        let numbers = Numbers::FourBits(FourBitBlocks::stored(format, codes, scales, device));
        let name = format!("bitsandbytes {}", Quantisation::new(format, double).describe());
        Ok(Self { shape, format: Format::Stored(name), numbers: Rc::new(numbers) })
    }

    /// Takes a matrix of int8 numbers with a scale for each row, in the layout of bitsandbytes: `codes` (out, in) int8 and
    /// `scales` (out) float32. Fails for scales that are NaN or infinite.
    pub fn of_int8_rows(codes: &Tensor, scales: &Tensor, device: Device) -> Result<Self> {
        let (outputs, inputs) = codes.size2()?;
        let numbers = Numbers::Int8(Int8Rows::stored(codes, scales, device)?);
        let format = Format::Stored("bitsandbytes int8".into());
        Ok(Self { shape: [outputs, inputs], format, numbers: Rc::new(numbers) })
    }

    /// Takes a matrix of whole numbers in groups; `name` is that of its format, for people. Fails for scales that are NaN or
    /// infinite.
    pub fn of_groups(parts: &GroupedCodes, name: String, device: Device) -> Result<Self> {
        let (outputs, inputs) = parts.codes.size2()?;
        let numbers = Numbers::Groups(IntegerGroups::new(parts, device)?);
        Ok(Self { shape: [outputs, inputs], format: Format::Stored(name), numbers: Rc::new(numbers) })
    }

    /// Takes a matrix (out, in) in MXFP4: `codes` (out, in / 2) uint8, of two numbers the first in the lower half, and
    /// `exponents` (out, in / 32) uint8. Fails if an exponent stands for NaN.
    pub fn of_mxfp4(codes: &Tensor, exponents: &Tensor, device: Device) -> Result<Self> {
        let (outputs, half) = codes.size2()?;
        let numbers = Numbers::Mxfp4(Mxfp4Groups::stored(codes, exponents, device)?);
        Ok(Self { shape: [outputs, 2 * half], format: Format::Stored(MXFP4.into()), numbers: Rc::new(numbers) })
    }

    /// Takes a matrix in MXFP4 as ggml has it: (out, in / 32, 17) uint8. Fails if an exponent stands for NaN.
    pub fn of_ggml_mxfp4(blocks: &Tensor, device: Device) -> Result<Self> {
        let (outputs, groups, _) = blocks.size3()?;
        let numbers = Numbers::Mxfp4(Mxfp4Groups::of_ggml(blocks, device)?);
        let shape = [outputs, groups * super::MXFP4_GROUP];
        Ok(Self { shape, format: Format::Stored(MXFP4.into()), numbers: Rc::new(numbers) })
    }

    /// Returns a matrix in MXFP4 as ggml has it: (out, in / 32, 17) uint8; `None` for other formats.
    pub fn to_ggml_mxfp4(&self) -> Option<Tensor> {
        match &*self.numbers {
            Numbers::Mxfp4(groups) => Some(groups.to_ggml()),
            _ => None,
        }
    }

    /// Rounds a matrix (out, in) on the CPU to FP8 (e4m3) in blocks of `block` outputs and inputs, with the bits of transformers.
    /// Fails if it has NaN or infinite values.
    pub fn quantise_to_fp8(weight: &Tensor, block: [i64; 2]) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let (outputs, inputs) = weight.size2()?;
        let numbers = Numbers::Fp8(Fp8Blocks::quantise(&cast(&weight.detach(), Kind::Float).contiguous(), block)?);
        Ok(Self { shape: [outputs, inputs], format: Format::Stored(FP8.into()), numbers: Rc::new(numbers) })
    }

    /// Takes a matrix (out, in) in FP8: `codes` (out, in) float8_e4m3fn, and `scales` (out / block[0], in / block[1]), both rounded
    /// up. Fails for scales that are NaN or infinite.
    pub fn of_fp8(codes: &Tensor, scales: &Tensor, block: [i64; 2], device: Device) -> Result<Self> {
        let (outputs, inputs) = codes.size2()?;
        let numbers = Numbers::Fp8(Fp8Blocks::stored(codes, scales, block, device)?);
        Ok(Self { shape: [outputs, inputs], format: Format::Stored(FP8.into()), numbers: Rc::new(numbers) })
    }

    /// Returns codes and scales of a matrix in FP8, in the layout that [`of_fp8`](Self::of_fp8) takes; `None` for other formats.
    pub fn fp8_tensors(&self) -> Option<[Tensor; 2]> {
        match &*self.numbers {
            Numbers::Fp8(blocks) => Some([0, 1].map(|i| blocks.tensors()[i].shallow_clone())),
            _ => None,
        }
    }

    /// Returns codes and scales of a matrix in 4-bit blocks, in the layout that [`of_blocks`](Self::of_blocks) takes; `None` for
    /// other formats.
    pub fn block_tensors(&self) -> Option<(Tensor, BlockScales)> {
        match &*self.numbers {
            Numbers::FourBits(blocks) => Some((blocks.tensors()[0].shallow_clone(), blocks.scales().as_stored())),
            _ => None,
        }
    }

    /// Makes a weight with the shape and the sizes of one that [`of_mxfp4`](Self::of_mxfp4) takes, without its numbers.
    pub fn outline_of_mxfp4(shape: [i64; 2]) -> Self {
        let numbers = Numbers::Mxfp4(Mxfp4Groups::outline(shape));
        Self { shape, format: Format::Stored(MXFP4.into()), numbers: Rc::new(numbers) }
    }

    /// Makes a weight with the shape and the sizes of one that [`of_groups`](Self::of_groups) takes, without its numbers: for
    /// a model of which only the shapes matter.
    pub fn outline_of_groups(shape: [i64; 2], bits: i64, group: i64, ordered: bool, name: String) -> Self {
        let numbers = Numbers::Groups(IntegerGroups::outline(shape, bits, group, ordered));
        Self { shape, format: Format::Stored(name), numbers: Rc::new(numbers) }
    }
}
