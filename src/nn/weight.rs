//! A layer's weight and the products with it: the only place that knows how a weight's numbers are stored.
//!
//! A weight may be stored in a narrower format than that of the arithmetic. It is widened while it is multiplied, by
//! the kernels of decoding as they read it and elsewhere into a temporary copy. Widening does not round. A frozen weight
//! may also be quantised ([`QuantisedWeight`]).

use super::ops::embedding_rows;
use super::quantised::{QuantisedWeight, SharedInput};
use crate::native;
use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// The weight (out, in) of a linear layer.
#[derive(Debug)]
pub enum Weight {
    /// A matrix of floating-point numbers, perhaps narrower than the arithmetic; trained if it requires a gradient.
    Dense(Tensor),
    /// A frozen matrix in 4 or 8 bits.
    Quantised(QuantisedWeight),
}

impl From<Tensor> for Weight {
    fn from(t: Tensor) -> Self {
        Self::Dense(t)
    }
}

impl Weight {
    /// Returns another handle to the same weight.
    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Dense(t) => Self::Dense(t.shallow_clone()),
            Self::Quantised(weight) => Self::Quantised(weight.clone()),
        }
    }

    /// Returns the shape: (out, in).
    pub fn shape(&self) -> Vec<i64> {
        match self {
            Self::Dense(t) => t.size(),
            Self::Quantised(weight) => weight.shape().to_vec(),
        }
    }

    /// Returns the number of outputs.
    pub fn outputs(&self) -> i64 {
        self.shape()[0]
    }

    /// Returns the dtype that holds the weight's numbers: the one that it is stored in, or float32 for quantised
    /// numbers.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dense(t) => t.kind(),
            Self::Quantised(_) => Kind::Float,
        }
    }

    /// Returns the device that the weight is on.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(t) => t.device(),
            Self::Quantised(weight) => weight.device(),
        }
    }

    /// Returns the tensor that collects the gradient; `None` for a frozen weight.
    pub fn trained(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(t) => (t.requires_grad() && native::learns(t)).then_some(t),
            Self::Quantised(_) => None,
        }
    }

    /// Returns true if the weight is stored in few bits.
    pub fn is_quantised(&self) -> bool {
        matches!(self, Self::Quantised(_))
    }

    /// Returns the matrix of floating-point numbers; `None` for a quantised weight.
    pub(super) fn matrix(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(t) => Some(t),
            Self::Quantised(_) => None,
        }
    }

    /// Returns the numbers in dtype `kind`: the stored tensor itself if it has this dtype, otherwise a copy.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match self {
            Self::Dense(t) => cast(t, kind),
            Self::Quantised(weight) => weight.dense(kind),
        }
    }

    /// Returns the rows `ids` (T), int64, of a table (V, D) in the dtype of [`kind`](Self::kind): (T, D).
    ///
    /// # Panics
    /// For a quantised table in a format without [whole rows](QuantisedWeight::has_whole_rows), which the builder refuses.
    pub fn rows(&self, ids: &Tensor) -> Tensor {
        match self {
            Self::Dense(t) => embedding_rows(t, ids),
            Self::Quantised(weight) => {
                weight.select_rows(ids).expect("the builder refuses other tables").dense(self.kind())
            }
        }
    }

    /// Returns the weight as an operand of several products by libtorch with tensors of dtype `kind`.
    pub(super) fn operand(&self, kind: Kind) -> Operand {
        match self {
            Self::Dense(t) => Operand::Dense(aligned_operand(t, kind)),
            Self::Quantised(weight) => Operand::Quantised(weight.clone()),
        }
    }

    /// Returns frozen weights of one input as one matrix (out of all, in), in the dtype in which they are stored; `None`
    /// if that differs or one is quantised. The first call moves their numbers, so that they lie side by side; the weights become parts of
    /// the matrix.
    pub(super) fn side_by_side(weights: &[&Self]) -> Option<Tensor> {
        let tensors = Self::frozen_matrices(weights)?;
        let (outputs, inputs) = (tensors.iter().map(|t| t.size()[0]).sum::<i64>(), tensors[0].size()[1]);
        // Tensors of several allocations may follow each other by chance; then no view of the first reaches the last.
        if Self::follow_each_other(&tensors)
            && let Ok(matrix) = tensors[0].f_as_strided([outputs, inputs], [inputs, 1], None::<i64>)
        {
            return Some(matrix);
        }
        let _no_grad = tch::no_grad_guard();
        Some(Self::become_parts_of(Tensor::cat(&tensors, 0), &tensors))
    }

    /// Moves frozen weights of one input into one matrix (out of all + `more`, in), with rows of zeros below them; `None` if their dtypes
    /// differ or one is quantised. The weights become parts of the matrix.
    pub(super) fn above_zeros(weights: &[&Self], more: i64) -> Option<Tensor> {
        let tensors = Self::frozen_matrices(weights)?;
        let _no_grad = tch::no_grad_guard();
        let below = Tensor::zeros([more, tensors[0].size()[1]], (tensors[0].kind(), tensors[0].device()));
        let all: Vec<&Tensor> = tensors.iter().copied().chain([&below]).collect();
        Some(Self::become_parts_of(Tensor::cat(&all, 0), &tensors))
    }

    /// Returns true if these weights are the first rows of `matrix`, one after the other.
    pub(super) fn are_parts_of(weights: &[&Self], matrix: &Tensor) -> bool {
        let Some(tensors) = Self::frozen_matrices(weights) else { return false };
        tensors[0].data_ptr() == matrix.data_ptr() && Self::follow_each_other(&tensors)
    }

    /// Returns the matrices of weights that are frozen, dense, and of one dtype and device.
    fn frozen_matrices<'w>(weights: &[&'w Self]) -> Option<Vec<&'w Tensor>> {
        let tensors = weights.iter().map(|weight| weight.matrix()).collect::<Option<Vec<&Tensor>>>()?;
        let (kind, device) = (tensors[0].kind(), tensors[0].device());
        let fits = |t: &&Tensor| !t.requires_grad() && t.kind() == kind && t.is_contiguous() && t.device() == device;
        tensors.iter().all(fits).then_some(tensors)
    }

    /// Returns true if each matrix begins where the one before ends.
    fn follow_each_other(tensors: &[&Tensor]) -> bool {
        let end = |t: &Tensor| t.data_ptr() as usize + t.numel() * t.kind().elt_size_in_bytes();
        tensors.windows(2).all(|pair| end(pair[0]) == pair[1].data_ptr() as usize)
    }

    /// Makes tensors the first rows of `matrix`, which has their numbers.
    fn become_parts_of(matrix: Tensor, tensors: &[&Tensor]) -> Tensor {
        let mut row = 0;
        for t in tensors {
            t.shallow_clone().set_data(&matrix.narrow(0, row, t.size()[0]));
            row += t.size()[0];
        }
        matrix
    }

    /// Computes `x W^T + bias` in the dtype of x: (…, in) -> (…, out).
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            Self::Dense(t) => product(x, t, bias),
            Self::Quantised(weight) => weight.product(x, bias),
        }
    }

    /// Computes the same without gradient, as one of several products of x: what quantised weights need of x is computed once, by the
    /// first of them, and kept in `shared`.
    pub(super) fn product_of_shared(&self, x: &Tensor, bias: Option<&Tensor>, shared: &SharedInput) -> Tensor {
        match self {
            Self::Dense(t) => product(x, t, bias),
            Self::Quantised(weight) => weight.product_now(x, bias, shared),
        }
    }

    /// Computes `sum + g W` in the dtype of g, the gradient of the input given that of the output: (T, out) -> (T, in).
    /// `sum` may be overwritten; `None` counts as zero.
    pub fn product_back(&self, g: &Tensor, sum: Option<Tensor>) -> Tensor {
        let weight = match self {
            Self::Dense(t) => aligned_operand(t, g.kind()),
            Self::Quantised(weight) => return weight.product_back(g, sum),
        };
        match sum {
            Some(mut sum) => sum.addmm_(g, &weight),
            None => g.matmul(&weight),
        }
    }
}

/// A weight (out, in) prepared for several products without gradient: a matrix in the dtype of the arithmetic, or a
/// quantised weight, of which each product dequantises some rows at a time.
pub(super) enum Operand {
    Dense(Tensor),
    Quantised(QuantisedWeight),
}

impl Operand {
    /// Computes `x W^T`: (n, in) -> (n, out).
    pub fn product(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Dense(t) => x.linear(t, None::<&Tensor>),
            Self::Quantised(weight) => weight.product(x, None),
        }
    }

    /// Computes `g W`: (n, out) -> (n, in).
    pub fn product_back(&self, g: &Tensor) -> Tensor {
        match self {
            Self::Dense(t) => g.matmul(t),
            Self::Quantised(weight) => weight.product_back(g, None),
        }
    }
}

/// A weight (out, in) and perhaps a bias (out).
pub struct Dense {
    /// The weight (out, in).
    pub weight: Weight,
    /// The bias (out), added to every output row.
    pub bias: Option<Tensor>,
}

impl Dense {
    /// Computes `x W^T + bias`: (…, in) -> (…, out).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|b| cast(b, x.kind()));
        self.weight.product(x, bias.as_ref())
    }
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// While a value of this type exists, products on this thread use the kernels of decoding, for which a row's result
/// does not depend on the other rows of the batch.
pub struct DecodingGuard(bool);

impl DecodingGuard {
    /// Switches the thread to the kernels of decoding until the value is dropped.
    pub fn begin() -> Self {
        Self(DECODING.replace(true))
    }
}

impl Drop for DecodingGuard {
    fn drop(&mut self) {
        DECODING.set(self.0);
    }
}

/// Returns true while a [`DecodingGuard`] exists on this thread.
pub fn is_decoding() -> bool {
    DECODING.get()
}

/// Computes `x (…, in) @ weight (out, in)^T + bias` in the dtype of x; a weight of another dtype is converted.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // The kernels of decoding read bfloat16 weights with any x; other formats are converted for them first. Widening
    // is exact, so the result has the same bits either way.
    let weight = if weight.kind() == Kind::BFloat16 { weight.shallow_clone() } else { cast(weight, x.kind()) };
    let decoded = if is_decoding() { native::product(x, &weight, bias, None) } else { None };
    decoded.unwrap_or_else(|| aligned_operand(x, x.kind()).linear(&aligned_operand(&weight, x.kind()), bias))
}

/// Computes `y + x (T, in) @ weight (out, in)^T`, rounded once; may overwrite y.
pub fn add_product(mut y: Tensor, x: &Tensor, weight: &Tensor) -> Tensor {
    let decoded = if is_decoding() { native::product(x, weight, None, Some(&y)) } else { None };
    decoded.unwrap_or_else(|| y.addmm_(x, &weight.tr()))
}

/// Returns the gradient `g^T x` of a weight (out, in) in dtype `kind`, given those of its outputs g (T, out) and its
/// inputs x (T, in). On a GPU the product of half-precision factors is written in float32 without a second operation.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, kind: Kind) -> Tensor {
    match kind {
        Kind::Float if native::has_wide_products(x) => native::wide_product(&g.tr(), x, 1.0),
        _ => cast(&g.tr().matmul(x), kind),
    }
}

/// Adds the gradient `g^T x` to `sum` (out, in). On a GPU it is added as it is computed, without a tensor of its own.
pub(super) fn add_weight_gradient(sum: &mut Tensor, g: &Tensor, x: &Tensor) {
    if sum.kind() == Kind::Float && native::has_wide_products(x) {
        native::add_wide_product(sum, &g.tr(), x);
    } else if x.device().is_cuda() && sum.kind() == x.kind() {
        let _ = sum.addmm_(&g.tr(), x);
    } else {
        *sum += g.tr().matmul(x);
    }
}

/// Converts a tensor to dtype `kind`; returns the same tensor if it already has it.
pub fn cast(t: &Tensor, kind: Kind) -> Tensor {
    if t.kind() == kind { t.shallow_clone() } else { t.to_kind(kind) }
}

/// Converts a tensor to dtype `kind` for use in libtorch's products, on the CPU at an address that is a multiple of
/// 16 bytes. On AMD's processors MKL sums in another order if the address is not, and a weight in a mapped file may
/// be at any address: equal weights would then give different bits.
pub fn aligned_operand(t: &Tensor, kind: Kind) -> Tensor {
    let t = cast(t, kind);
    let misplaced = t.device() == Device::Cpu && t.data_ptr() as usize % 16 != 0;
    if misplaced { t.copy() } else { t }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Returns a copy of the tensor whose data begins `by` bytes after a multiple of 64.
    fn displaced(t: &Tensor, by: i64) -> Tensor {
        let bytes = t.contiguous().view([-1]).view_dtype(Kind::Uint8);
        let room = Tensor::zeros([bytes.size()[0] + 128], (Kind::Uint8, Device::Cpu));
        let start = (64 - room.data_ptr() as i64 % 64) % 64 + by;
        let part = room.narrow(0, start, bytes.size()[0]);
        part.shallow_clone().copy_(&bytes);
        part.view_dtype(t.kind()).view(t.size().as_slice())
    }

    /// A reference model mapped from a file and a policy in allocated memory must compute the same numbers.
    #[test]
    fn a_product_does_not_depend_on_where_its_operands_lie() {
        if !crate::machine::Cpu::read().avx2 {
            return; // MKL's products for SSE begin at the first aligned number
        }
        tch::manual_seed(3);
        for kind in [Kind::Float, Kind::BFloat16] {
            for (rows, inputs, outputs) in [(1, 64, 96), (7, 64, 512), (130, 576, 200), (33, 100, 77), (257, 48, 64)] {
                let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
                let (x, w) = (random([rows, inputs]), random([outputs, inputs]));
                let expected = product(&displaced(&x, 0), &displaced(&w, 0), None);
                for by in [8, 16, 24, 32, 40, 48] {
                    for (dx, dw) in [(0, by), (by, 0), (by, by)] {
                        let found = product(&displaced(&x, dx), &displaced(&w, dw), None);
                        assert!(found.equal(&expected), "{kind:?} {rows} x {inputs} x {outputs}: x {dx}, w {dw}");
                    }
                }
            }
        }
    }
}
