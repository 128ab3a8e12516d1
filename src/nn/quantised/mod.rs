//! Frozen weights in few bits: how they are quantised, and the products with them.
//!
//! A layer's weight is dequantised, some rows at a time, while it is multiplied; the backward does so again. Decoding
//! reads the codes themselves (`native::quantised`). The formats are those of bitsandbytes, bit for bit: `blocks` (NF4,
//! FP4, with the values of `code_book` and the quantised scales of `scales`) and `int8`; and, of weights that are stored so
//! (`stored`), those of llama.cpp (`ggml`), GPTQ and AWQ (`integer_groups`), `mxfp4` and `fp8`. A new format is a file of its own and a
//! variant of [`Numbers`].
//!
//! One format is multiplied in another way where a GPU can: `fp8_matrix`, whose products in half precision round their other operand to
//! FP8 as well (`rounded_rows`).

mod blocks;
mod code_book;
mod fp8;
mod fp8_matrix;
mod ggml;
mod int8;
mod integer_groups;
mod mxfp4;
mod rounded_rows;
mod scales;
mod settings;
mod stored;

pub use fp8_matrix::{fits_fp8_products, has_fp8_products};
pub use integer_groups::GroupedCodes;
pub use mxfp4::GROUP as MXFP4_GROUP;
pub use rounded_rows::SharedInput;
pub use settings::{BaseQuantisation, Quantisation, QuantisedFormat, TABLES, TableFormat};
pub use stored::{BlockScales, four_bit_values, scale_values};

use super::autograd::{differentiable, recorded};
use super::weight::{aligned_operand, cast, is_decoding, product};
use crate::error::{Error, Result};
use crate::gguf::quant::GgmlType;
use crate::native::quantised::QuantisedMatrix;
use blocks::FourBitBlocks;
use fp8::Fp8Blocks;
use fp8_matrix::Fp8Matrix;
use ggml::GgmlBlocks;
use int8::Int8Rows;
use integer_groups::{InputOrder, IntegerGroups};
use mxfp4::Mxfp4Groups;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Numbers that are dequantised at a time outside of decoding: 64 MiB in float32. Larger layers than that are multiplied
/// in several tiles.
pub const TILE: i64 = 1 << 24;

/// The quantised weight (out, in) of a linear layer, or table (V, D). Cloning it copies no numbers.
#[derive(Debug, Clone)]
pub struct QuantisedWeight {
    shape: [i64; 2],
    format: Format,
    numbers: Rc<Numbers>,
}

/// How a weight is quantised.
#[derive(Debug, Clone)]
enum Format {
    /// When it was loaded.
    Loaded(Quantisation),
    /// In its file, in the format of this name.
    Stored(String),
}

/// The stored numbers, by format.
#[derive(Debug)]
enum Numbers {
    FourBits(FourBitBlocks),
    Int8(Int8Rows),
    Ggml(GgmlBlocks),
    Groups(IntegerGroups),
    Mxfp4(Mxfp4Groups),
    Fp8(Fp8Blocks),
    Fp8Matrix(Fp8Matrix),
}

impl QuantisedWeight {
    /// Quantises a matrix (out, in) on the CPU and moves the result to `device`. Fails if it has NaN or infinite values.
    pub fn quantise(weight: &Tensor, format: Quantisation, device: Device) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let (outputs, inputs) = weight.size2()?;
        let wide = cast(&weight.detach().to_device(Device::Cpu), Kind::Float).contiguous();
        let numbers = match format.format {
            QuantisedFormat::Int8 => Numbers::Int8(Int8Rows::quantise(&wide, device)?),
            QuantisedFormat::Fp8 => Numbers::Fp8Matrix(Fp8Matrix::quantise(&wide, device)?),
            four_bits => Numbers::FourBits(FourBitBlocks::quantise(&wide, four_bits, format.double, device)?),
        };
        Ok(Self { shape: [outputs, inputs], format: Format::Loaded(format), numbers: Rc::new(numbers) })
    }

    /// Quantises a matrix (out, in) in a format of tables, some rows at a time: `rows` returns the numbers of a range of them
    /// (n, in) on the CPU, in any dtype. Fails if it has NaN or infinite values, or if `rows` does.
    pub fn quantise_by_rows(
        shape: [i64; 2],
        format: TableFormat,
        device: Device,
        rows: impl FnMut(Range<i64>) -> Result<Tensor>,
    ) -> Result<Self> {
        let TableFormat::Int8 = format;
        let numbers = Numbers::Int8(Int8Rows::quantise_by_rows(shape, device, rows)?);
        Ok(Self { shape, format: Format::Loaded(format.quantisation()), numbers: Rc::new(numbers) })
    }

    /// Takes a matrix of this shape (out, in) in blocks of ggml: uint8 and contiguous, at any address, such as a part of a
    /// mapped file. Fails if a row is no whole number of blocks, the size does not fit, or a scale is NaN or infinite.
    pub fn of_ggml_blocks(kind: GgmlType, shape: [i64; 2], blocks: &Tensor) -> Result<Self> {
        let numbers = GgmlBlocks::new(kind, shape, blocks)?;
        Ok(Self { shape, format: Format::Stored(kind.name()), numbers: Rc::new(Numbers::Ggml(numbers)) })
    }

    /// Returns how the weight was quantised when it was loaded; `None` if it is stored quantised.
    pub fn format(&self) -> Option<Quantisation> {
        match self.format {
            Format::Loaded(format) => Some(format),
            Format::Stored(_) => None,
        }
    }

    /// Returns the name of the format for people, such as `NF4 with 8-bit scales` or `Q4_1`.
    pub fn describe(&self) -> String {
        match &self.format {
            Format::Loaded(format) => format.describe(),
            Format::Stored(name) => name.clone(),
        }
    }

    /// Returns true if each row has codes and scales of its own, so that [`select_rows`](Self::select_rows) can read it.
    pub fn has_whole_rows(&self) -> bool {
        matches!(*self.numbers, Numbers::Ggml(_) | Numbers::Int8(_))
    }

    /// Returns the rows with these numbers (n), int64 on the weight's device, in their order: a quantised weight (n, in)
    /// of its own. Fails for formats without [whole rows](Self::has_whole_rows).
    pub fn select_rows(&self, rows: &Tensor) -> Result<Self> {
        let numbers = match &*self.numbers {
            Numbers::Ggml(blocks) => Numbers::Ggml(blocks.select(rows)),
            Numbers::Int8(numbers) => Numbers::Int8(numbers.select(rows)),
            _ => return Err(Error::user(format!("single rows of a weight in {} cannot be read", self.describe()))),
        };
        let shape = [rows.size()[0], self.shape[1]];
        Ok(Self { shape, format: self.format.clone(), numbers: Rc::new(numbers) })
    }

    /// Returns the shape: (out, in).
    pub fn shape(&self) -> [i64; 2] {
        self.shape
    }

    /// Returns the number of parameters.
    pub fn count(&self) -> u64 {
        (self.shape[0] * self.shape[1]) as u64
    }

    /// Returns the size in memory, scales included.
    pub fn bytes(&self) -> u64 {
        let size = |t: &&Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        self.tensors().iter().map(size).sum()
    }

    /// Returns the stored tensors: the codes, then their scales.
    pub fn tensors(&self) -> Vec<&Tensor> {
        match &*self.numbers {
            Numbers::FourBits(blocks) => blocks.tensors(),
            Numbers::Int8(rows) => rows.tensors(),
            Numbers::Ggml(blocks) => blocks.tensors(),
            Numbers::Groups(groups) => groups.tensors(),
            Numbers::Mxfp4(groups) => groups.tensors(),
            Numbers::Fp8(blocks) => blocks.tensors(),
            Numbers::Fp8Matrix(matrix) => matrix.tensors(),
        }
    }

    /// Returns the device that the weight is on.
    pub fn device(&self) -> Device {
        self.tensors()[0].device()
    }

    /// Returns all numbers in dtype `kind`: a new tensor (out, in).
    pub fn dense(&self, kind: Kind) -> Tensor {
        let stored = self.rows(0..self.shape[0], kind);
        self.input_order().map_or_else(|| stored.shallow_clone(), |order| order.undo(&stored))
    }

    /// Returns the order in which the columns are stored; `None`: that of the inputs.
    fn input_order(&self) -> Option<&InputOrder> {
        match &*self.numbers {
            Numbers::Groups(groups) => groups.order(),
            _ => None,
        }
    }

    /// Returns some rows in dtype `kind`: a new tensor (rows, in), its columns in the order in which they are stored. On a
    /// GPU the first of them is a multiple of [`ROWS`].
    fn rows(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        if let Some(matrix) = self.matrix() {
            let wide = if kind == Kind::BFloat16 { kind } else { Kind::Float };
            return cast(&matrix.rows(rows, wide), kind);
        }
        match &*self.numbers {
            Numbers::FourBits(blocks) => blocks.rows_on_device(rows, self.shape[1], kind),
            Numbers::Int8(numbers) => numbers.rows_on_device(rows, kind),
            Numbers::Ggml(blocks) => blocks.rows_on_device(rows, kind),
            Numbers::Groups(groups) => groups.rows_on_device(rows, self.shape[1], kind),
            Numbers::Mxfp4(groups) => groups.rows_on_device(rows, kind),
            Numbers::Fp8(blocks) => blocks.rows(rows, kind),
            Numbers::Fp8Matrix(matrix) => matrix.rows(rows, kind),
        }
    }

    /// Returns the weight as the CPU's kernels read it; `None` on another device, and for FP8, which they do not read.
    fn matrix(&self) -> Option<QuantisedMatrix<'_>> {
        if self.device() != Device::Cpu {
            return None;
        }
        Some(match &*self.numbers {
            Numbers::FourBits(blocks) => blocks.matrix(self.shape),
            Numbers::Int8(rows) => rows.matrix(self.shape),
            Numbers::Ggml(blocks) => blocks.matrix(self.shape),
            Numbers::Groups(groups) => groups.matrix(self.shape),
            Numbers::Mxfp4(groups) => groups.matrix(self.shape),
            Numbers::Fp8(_) | Numbers::Fp8Matrix(_) => return None,
        })
    }

    /// Returns the numbers if the product with a tensor like x is computed in FP8.
    fn fp8_product(&self, x: &Tensor) -> Option<&Fp8Matrix> {
        match &*self.numbers {
            Numbers::Fp8Matrix(matrix) if matrix.multiplies_in_fp8(x) => Some(matrix),
            _ => None,
        }
    }

    /// Returns the ranges of rows that are dequantised together.
    fn tiles(&self) -> impl Iterator<Item = Range<i64>> {
        let [outputs, inputs] = self.shape;
        let most = (TILE / inputs.max(1) / ROWS * ROWS).max(ROWS);
        (0..outputs).step_by(most as usize).map(move |start| start..(start + most).min(outputs))
    }

    /// Computes `x W^T + bias` in the dtype of x: (…, in) -> (…, out). With a gradient, the backward dequantises the
    /// weight again.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(bias).collect();
        if !recorded(&inputs) {
            return self.product_now(x, bias, &SharedInput::default());
        }
        let (weight, shape) = (self.clone(), x.size());
        let bias_kind = bias.map(Tensor::kind);
        differentiable(
            &inputs,
            || (self.product_now(x, bias, &SharedInput::default()), ()),
            move |(), g| {
                let g = g.reshape([-1, weight.shape[0]]); // (T, out)
                let mut gradients = vec![Some(weight.product_back(&g, None).view(shape.as_slice()))];
                let of_bias = |kind| g.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).to_kind(kind);
                gradients.extend(bias_kind.map(|kind| Some(of_bias(kind))));
                gradients
            },
        )
    }

    /// Computes the same without gradient. `shared` is that of all products of x that are computed together.
    pub(super) fn product_now(&self, x: &Tensor, bias: Option<&Tensor>, shared: &SharedInput) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        if let Some(matrix) = self.fp8_product(x) {
            let rows = x.reshape([-1, self.shape[1]]);
            let mut y = matrix.product(shared.rounded(&rows), x.kind());
            if let Some(bias) = bias {
                y += cast(bias, x.kind());
            }
            let mut size = x.size();
            *size.last_mut().expect("a matrix has columns") = self.shape[0];
            return y.view(size.as_slice());
        }
        let ordered = self.input_order().map(|order| order.apply(x));
        let x = ordered.as_ref().unwrap_or(x);
        let decoded = match self.matrix() {
            Some(matrix) if is_decoding() => matrix.product(&x.contiguous(), bias),
            _ => None,
        };
        if let Some(y) = decoded {
            return y;
        }
        let (x, bias) = (aligned_operand(x, x.kind()), bias.map(|b| cast(b, x.kind())));
        let of_tile = |rows: Range<i64>| {
            let bias = bias.as_ref().map(|b| b.narrow(0, rows.start, rows.end - rows.start));
            product(&x, &self.rows(rows, x.kind()), bias.as_ref())
        };
        let mut tiles = self.tiles();
        let first = tiles.next().unwrap_or(0..0);
        if first.end == self.shape[0] {
            return of_tile(first);
        }
        let mut size = x.size();
        *size.last_mut().expect("a matrix has columns") = self.shape[0];
        let y = Tensor::empty(size, (x.kind(), x.device()));
        for rows in std::iter::once(first).chain(tiles) {
            y.narrow(-1, rows.start, rows.end - rows.start).copy_(&of_tile(rows.clone()));
        }
        y
    }

    /// Computes `sum + g W` in the dtype of g: (T, out) -> (T, in). `sum` may be overwritten; `None` counts as zero.
    pub fn product_back(&self, g: &Tensor, sum: Option<Tensor>) -> Tensor {
        if let Some(matrix) = self.fp8_product(g) {
            return matrix.product_back(g, sum);
        }
        let Some(order) = self.input_order() else { return self.stored_product_back(g, sum) };
        let back = order.undo(&self.stored_product_back(g, None));
        sum.map_or_else(|| back.shallow_clone(), |mut sum| sum.g_add_(&back))
    }

    /// Does the same with the columns in the order in which they are stored.
    fn stored_product_back(&self, g: &Tensor, mut sum: Option<Tensor>) -> Tensor {
        for rows in self.tiles() {
            let (part, weight) = (g.narrow(-1, rows.start, rows.end - rows.start), self.rows(rows, g.kind()));
            sum = Some(match sum {
                Some(mut sum) => sum.addmm_(&part, &weight),
                None => part.matmul(&weight),
            });
        }
        sum.unwrap_or_else(|| Tensor::zeros([g.size()[0], self.shape[1]], (g.kind(), g.device())))
    }
}

/// Tiles begin at multiples of so many rows: at the beginning of a block, whatever the number of columns.
const ROWS: i64 = crate::native::quantised::BLOCK;
