//! Rust interface to the kernels of quantised weights (native/quantised.cpp, native/decode.cpp): quantising,
//! dequantising and the products of decoding, on the CPU.
//!
//! A number has the same bits on every instruction set, and a product those of a product with the dequantised weight.

use super::kernels::{BufferPtr, parallel};
use super::products::{KernelBuild, owned, raw, raw_or_null};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// Numbers of 4 bits that share a scale.
pub const BLOCK: i64 = 64;
/// Scales that share a scale, with double quantisation.
pub const GROUP: i64 = 256;

/// The layout of `FtQuantised` in native/quantised.h.
#[repr(C)]
struct Matrix {
    columns: i64,
    ggml: i32,
    codes: *const u8,
    values: *const f32,
    scales: *const f32,
    scale_codes: *const u8,
    scale_scales: *const f32,
    scale_values: *const f32,
    offset: f32,
    zeros: *const u8,
    group: i64,
    bytes: bool,
}

impl Matrix {
    fn of_codes(columns: i64, codes: *const u8) -> Self {
        let (values, scales, scale_scales, scale_values) =
            (std::ptr::null(), std::ptr::null(), std::ptr::null(), std::ptr::null());
        let (scale_codes, zeros) = (std::ptr::null(), std::ptr::null());
        let (ggml, offset, group, bytes) = (0, 0.0, 0, false);
        Self {
            columns,
            ggml,
            codes,
            values,
            scales,
            scale_codes,
            scale_scales,
            scale_values,
            offset,
            zeros,
            group,
            bytes,
        }
    }
}

/// Returns the address of a part of a matrix.
///
/// # Panics
/// If it has another dtype or size, or is not contiguous on the CPU.
fn whole(t: &Tensor, kind: Kind, size: i64) -> *mut c_void {
    let fits = t.kind() == kind && t.numel() as i64 == size && t.is_contiguous() && t.device() == Device::Cpu;
    assert!(fits, "a part of a quantised matrix has {:?} {:?}, not {size} of {kind:?}", t.kind(), t.size());
    t.data_ptr()
}

// SAFETY: addresses of memory that outlives the loops and is only read.
unsafe impl Sync for Matrix {}

unsafe extern "C" {
    fn ft_isa() -> c_int;
    fn ft_dequantise(level: c_int, w: *const Matrix, half: bool, begin: i64, end: i64, y: *mut c_void);
    fn ft_ggml_row_bytes_portable(number: c_int, columns: i64) -> i64;
    fn ft_quantise_4bit(
        level: c_int,
        x: *const f32,
        n: i64,
        begin: i64,
        end: i64,
        borders: *const f32,
        order: *const u8,
        codes: *mut u8,
        scales: *mut f32,
    );
    fn ft_product_quantised(
        level: c_int,
        x: *mut C_tensor,
        w: *const Matrix,
        rows: i64,
        bias: *mut C_tensor,
    ) -> *mut C_tensor;
}

/// What the codes of a quantised matrix stand for.
pub enum Codes<'a> {
    /// 4 bits: one of 16 values times the scale of the number's block.
    FourBits(&'a [f32; 16]),
    /// int8: times the scale of the number's row, over 127.
    Int8,
    /// Less the zero of the number's group, times the group's scale.
    Groups {
        /// 4 bits (an even number of columns, zeros up to 15) or 8.
        bits: i64,
        /// Numbers of a row in a group; the last one may be shorter.
        group: i64,
        /// (rows, groups) uint8
        zeros: &'a Tensor,
    },
    /// 4 bits: one of 16 values times `2^(exponent - 127)`, with the exponent of the number's group.
    Exponents {
        /// The values of the codes.
        values: &'a [f32; 16],
        /// Numbers of a row in a group; rows are whole groups.
        group: i64,
        /// (rows, groups) uint8, below 255
        exponents: &'a Tensor,
    },
}

/// The scales of a quantised matrix: float32 tensors on the CPU.
pub enum ScaleTensors<'a> {
    /// None: they are part of what the codes stand for ([`Codes::Exponents`]).
    InCodes,
    /// One per block or row.
    Plain(&'a Tensor),
    /// One byte per block: one of 256 values times the scale of its group, plus an offset.
    Double {
        /// (blocks) uint8
        codes: &'a Tensor,
        /// (groups)
        scales: &'a Tensor,
        /// The values of the codes.
        values: &'a [f32; 256],
        /// Added to every scale.
        offset: f32,
    },
}

/// A quantised matrix in memory that Rust owns: checked against its size when it is made.
pub struct QuantisedMatrix<'a> {
    rows: i64,
    inner: Matrix,
    _tensors: std::marker::PhantomData<&'a Tensor>,
}

impl<'a> QuantisedMatrix<'a> {
    /// Describes a matrix of `[rows, columns]`. `codes`: uint8 or int8, contiguous, on the CPU.
    ///
    /// # Panics
    /// If a tensor has another size, dtype or device than the matrix needs.
    pub fn new([rows, columns]: [i64; 2], codes: &'a Tensor, meaning: Codes<'a>, scales: ScaleTensors<'a>) -> Self {
        let n = rows * columns;
        let (values, kind, bytes, scaled) = match meaning {
            Codes::FourBits(values) => (values.as_ptr(), Kind::Uint8, (n + 1) / 2, (n + BLOCK - 1) / BLOCK),
            Codes::Int8 => (std::ptr::null(), Kind::Int8, n, rows),
            Codes::Groups { bits, group, .. } => {
                assert!(group > 0 && (bits == 8 || bits == 4 && columns % 2 == 0), "{bits} bits, groups of {group}");
                (std::ptr::null(), Kind::Uint8, n * bits / 8, rows * ((columns + group - 1) / group))
            }
            Codes::Exponents { values, group, .. } => {
                assert!(group > 0 && group % 2 == 0 && columns % group == 0, "{columns} columns in groups of {group}");
                (values.as_ptr(), Kind::Uint8, n / 2, rows * columns / group)
            }
        };
        let (zeros, group, whole_bytes) = match meaning {
            Codes::Groups { bits, group, zeros } => (whole(zeros, Kind::Uint8, scaled) as *const u8, group, bits == 8),
            Codes::Exponents { group, .. } => (std::ptr::null(), group, false),
            Codes::FourBits(_) | Codes::Int8 => (std::ptr::null(), 0, false),
        };
        let codes = whole(codes, kind, bytes) as *const u8;
        let none = Matrix { values, zeros, group, bytes: whole_bytes, ..Matrix::of_codes(columns, codes) };
        let inner = match scales {
            ScaleTensors::InCodes => {
                let Codes::Exponents { exponents, .. } = meaning else { panic!("codes of this format have scales") };
                Matrix { scale_codes: whole(exponents, Kind::Uint8, scaled) as *const u8, ..none }
            }
            ScaleTensors::Plain(scales) => Matrix { scales: whole(scales, Kind::Float, scaled) as *const f32, ..none },
            ScaleTensors::Double { codes, scales, values: scale_values, offset } => {
                assert!(!none.values.is_null(), "only the scales of 4-bit blocks are quantised");
                let groups = (scaled + GROUP - 1) / GROUP;
                Matrix {
                    scale_codes: whole(codes, Kind::Uint8, scaled) as *const u8,
                    scale_scales: whole(scales, Kind::Float, groups) as *const f32,
                    scale_values: scale_values.as_ptr(),
                    offset,
                    ..none
                }
            }
        };
        Self { rows, inner, _tensors: std::marker::PhantomData }
    }

    /// Describes a matrix of `[rows, columns]` in blocks of ggml's type `number`: uint8, contiguous, on the CPU.
    ///
    /// # Panics
    /// If the blocks have another size, dtype or device, or there are none of this type.
    pub fn of_ggml_blocks([rows, columns]: [i64; 2], blocks: &'a Tensor, number: u32) -> Self {
        // SAFETY: plain call.
        let row = unsafe { ft_ggml_row_bytes_portable(number as c_int, columns) };
        assert!(row > 0, "rows of {columns} numbers in blocks of ggml's type {number}");
        let codes = whole(blocks, Kind::Uint8, rows * row) as *const u8;
        let inner = Matrix { ggml: number as i32, ..Matrix::of_codes(columns, codes) };
        Self { rows, inner, _tensors: std::marker::PhantomData }
    }

    /// Returns some rows as numbers: (rows, columns) in dtype `kind`, float32 or bfloat16.
    pub fn rows(&self, rows: Range<i64>, kind: Kind) -> Tensor {
        self.rows_by(KernelBuild::BEST, rows, kind)
    }

    /// Returns the same by one build's kernels.
    pub fn rows_by(&self, build: KernelBuild, rows: Range<i64>, kind: Kind) -> Tensor {
        assert!(matches!(kind, Kind::Float | Kind::BFloat16) && 0 <= rows.start && rows.end <= self.rows);
        let columns = self.inner.columns;
        let y = Tensor::empty([rows.end - rows.start, columns], (kind, Device::Cpu));
        let (to, inner, half, level) = (BufferPtr::of(&y), &self.inner, kind == Kind::BFloat16, build.level());
        let width = if half { 2 } else { 4 };
        // SAFETY: the parts of the matrix have the sizes that were checked; each thread writes its own rows of y.
        parallel(rows.end - rows.start, columns, |b, e| unsafe {
            let at = to.any().cast::<u8>().add((b * columns) as usize * width);
            ft_dequantise(level, inner, half, (rows.start + b) * columns, (rows.start + e) * columns, at.cast())
        });
        y
    }

    /// Computes `x (…, columns) @ w^T + bias` in the dtype of x, with the numbers of w in that dtype. A row's bits do
    /// not depend on the other rows. `None` if there is no kernel for x, or if x has so many rows that libtorch's
    /// product with the dequantised weight is as fast.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
        self.product_by(KernelBuild::BEST, x, bias)
    }

    /// Computes the same by one build's kernels, for any number of rows.
    pub fn product_by(&self, build: KernelBuild, x: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
        // SAFETY: live tensors for the duration of the call, and a matrix of the sizes that were checked; the result is
        // ours.
        unsafe { owned(ft_product_quantised(build.number(), raw(x), &self.inner, self.rows, raw_or_null(bias))) }
    }
}

/// Quantises the numbers of `x` (float32 on the CPU, contiguous) to 4 bits. `borders` are the limits between
/// neighbouring values, `order` their codes, both by ascending value. Returns the codes (two to a byte) and the largest
/// magnitude of each block, which is NaN for a block with NaN or infinite numbers.
pub fn quantise_4bit(x: &Tensor, borders: &[f32; 15], order: &[u8; 16]) -> (Tensor, Tensor) {
    quantise_4bit_by(KernelBuild::BEST, x, borders, order)
}

/// Does the same by one build's kernels.
pub fn quantise_4bit_by(build: KernelBuild, x: &Tensor, borders: &[f32; 15], order: &[u8; 16]) -> (Tensor, Tensor) {
    assert!(x.kind() == Kind::Float && x.device() == Device::Cpu && x.is_contiguous());
    let n = x.numel() as i64;
    let blocks = (n + BLOCK - 1) / BLOCK;
    let codes = Tensor::empty([(n + 1) / 2], (Kind::Uint8, Device::Cpu));
    let scales = Tensor::empty([blocks], (Kind::Float, Device::Cpu));
    let [from, to, largest] = [x, &codes, &scales].map(BufferPtr::of);
    let level = build.level();
    // SAFETY: each thread writes the codes and scales of its own blocks.
    parallel(blocks, 8 * BLOCK, |b, e| unsafe {
        let (borders, order) = (borders.as_ptr(), order.as_ptr());
        ft_quantise_4bit(level, from.f32(), n, b, e, borders, order, to.any().cast(), largest.f32())
    });
    (codes, scales)
}

impl KernelBuild {
    /// Returns the number of the instruction set: the best one's for [`KernelBuild::BEST`].
    fn level(self) -> c_int {
        // SAFETY: plain call.
        if self.number() < 0 { unsafe { ft_isa() } } else { self.number() }
    }
}
