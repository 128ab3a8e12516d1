//! Whole numbers of 4 or 8 bits in groups of a row's inputs that share a scale and a zero: what checkpoints of GPTQ and AWQ
//! are unpacked to.
//!
//! GPTQ may put any inputs into a group ("act order"). Rows are then stored in another order of the inputs, in which groups
//! lie side by side, and the inputs of a product are put into that order first.

use super::scales::require_finite;
use crate::error::Result;
use crate::native::quantised::{Codes, QuantisedMatrix, ScaleTensors};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A weight of which number j of row i is `(codes[i, j] - zeros[i, g]) * scales[i, g]`, where g is the group of input j.
pub struct GroupedCodes {
    /// 4 or 8 bits of each code.
    pub bits: i64,
    /// (out, in) uint8, one code a byte. With 4 bits `in` is even.
    pub codes: Tensor,
    /// (out, groups), floating-point numbers.
    pub scales: Tensor,
    /// (out, groups) uint8, in the range of the codes.
    pub zeros: Tensor,
    /// Inputs of a group; the last one may be smaller.
    pub group: i64,
    /// (in) int64: the inputs, one group after the other. `None`: they lie so already.
    pub order: Option<Tensor>,
}

/// The numbers of a weight, in the order of its groups.
#[derive(Debug)]
pub struct IntegerGroups {
    bits: i64,
    group: i64,
    /// (out, in) uint8 or, with 4 bits, (out, in / 2), of two codes the first in the upper half.
    codes: Tensor,
    /// (out, groups) float32
    scales: Tensor,
    /// (out, groups) uint8
    zeros: Tensor,
    order: Option<InputOrder>,
}

/// An order of the inputs, and the way back: (in) int64 each.
#[derive(Debug)]
pub struct InputOrder {
    order: Tensor,
    back: Tensor,
}

impl InputOrder {
    /// Puts columns (…, in) into this order.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        x.index_select(-1, &self.order)
    }

    /// Puts columns (…, in) that are in this order back into the order of the inputs.
    pub fn undo(&self, x: &Tensor) -> Tensor {
        x.index_select(-1, &self.back)
    }
}

impl IntegerGroups {
    /// Takes the numbers to `device`. Fails for scales that are NaN or infinite.
    pub fn new(parts: &GroupedCodes, device: Device) -> Result<Self> {
        let scales = parts.scales.to_kind(Kind::Float).contiguous();
        require_finite(&scales)?;
        let codes = match &parts.order {
            Some(order) => parts.codes.index_select(1, order),
            None => parts.codes.shallow_clone(),
        };
        let codes = match parts.bits {
            4 => {
                let half = |first: i64| codes.slice(1, first, None, 2);
                half(0).bitwise_left_shift_tensor_scalar(4).bitwise_or_tensor(&half(1))
            }
            _ => codes,
        };
        let codes = codes.contiguous(); // those of AWQ are transposed
        let order = parts.order.as_ref().map(|order| InputOrder {
            order: order.to_device(device),
            back: order.argsort(0, false).to_device(device),
        });
        let [codes, scales, zeros] = [codes, scales, parts.zeros.contiguous()].map(|t| t.to_device(device));
        Ok(Self { bits: parts.bits, group: parts.group, codes, scales, zeros, order })
    }

    /// Makes numbers that are all zero and take no memory, with the shapes of those of a matrix (out, in) on the CPU.
    /// `ordered`: whether the inputs are put into another order.
    pub fn outline([outputs, inputs]: [i64; 2], bits: i64, group: i64, ordered: bool) -> Self {
        let zeros = |shape: &[i64], kind| Tensor::zeros(vec![1; shape.len()], (kind, Device::Cpu)).expand(shape, false);
        let (columns, groups) = (if bits == 4 { inputs / 2 } else { inputs }, (inputs + group - 1) / group);
        let order = || InputOrder { order: zeros(&[inputs], Kind::Int64), back: zeros(&[inputs], Kind::Int64) };
        Self {
            bits,
            group,
            codes: zeros(&[outputs, columns], Kind::Uint8),
            scales: zeros(&[outputs, groups], Kind::Float),
            zeros: zeros(&[outputs, groups], Kind::Uint8),
            order: ordered.then(order),
        }
    }

    /// Returns the codes, their scales and zeros, and the order of the inputs.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let order = self.order.iter().flat_map(|order| [&order.order, &order.back]);
        [&self.codes, &self.scales, &self.zeros].into_iter().chain(order).collect()
    }

    /// Returns the matrix as the CPU's kernels read it, its columns in the order of the groups.
    pub fn matrix(&self, shape: [i64; 2]) -> QuantisedMatrix<'_> {
        let meaning = Codes::Groups { bits: self.bits, group: self.group, zeros: &self.zeros };
        QuantisedMatrix::new(shape, &self.codes, meaning, ScaleTensors::Plain(&self.scales))
    }

    /// Returns the order in which the columns are stored; `None`: that of the inputs.
    pub fn order(&self) -> Option<&InputOrder> {
        self.order.as_ref()
    }

    /// Returns some rows of `columns` numbers by libtorch's operations, in dtype `kind`, their columns in the order of the
    /// groups.
    pub fn rows_on_device(&self, rows: Range<i64>, columns: i64, kind: Kind) -> Tensor {
        let part = |t: &Tensor| t.narrow(0, rows.start, rows.end - rows.start);
        let codes = part(&self.codes);
        let codes = match self.bits {
            4 => Tensor::stack(&[codes.bitwise_right_shift_tensor_scalar(4), codes.bitwise_and(15)], -1),
            _ => codes,
        };
        let of_columns = |t: &Tensor| {
            part(t).to_kind(Kind::Float).repeat_interleave_self_int(self.group, 1, None::<i64>).narrow(1, 0, columns)
        };
        let numbers = codes.view([-1, columns]).to_kind(Kind::Float) - of_columns(&self.zeros);
        (numbers * of_columns(&self.scales)).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both compute what the definition says: groups that are short, of one input pair, the whole row; with and without an
    /// order of the inputs.
    #[test]
    fn libtorchs_operations_give_the_bits_of_the_kernels() {
        tch::manual_seed(5);
        let bytes = (Kind::Uint8, Device::Cpu);
        for (outputs, inputs, group) in [(7, 64, 32), (5, 40, 24), (3, 96, 2), (4, 128, 128), (2, 192, 64)] {
            for bits in [4, 8] {
                for ordered in [false, true] {
                    let groups = (inputs + group - 1) / group;
                    let order = ordered.then(|| Tensor::randperm(inputs, (Kind::Int64, Device::Cpu)));
                    let parts = GroupedCodes {
                        bits,
                        codes: Tensor::randint(1 << bits, [outputs, inputs], bytes),
                        scales: Tensor::rand([outputs, groups], (Kind::Float, Device::Cpu)).to_kind(Kind::Half),
                        zeros: Tensor::randint(1 << bits, [outputs, groups], bytes),
                        group,
                        order: order.as_ref().map(Tensor::shallow_clone),
                    };
                    let numbers = IntegerGroups::new(&parts, Device::Cpu).unwrap();
                    let shape = [outputs, inputs];
                    let found = numbers.matrix(shape).rows(0..outputs, Kind::Float);
                    assert!(numbers.rows_on_device(0..outputs, inputs, Kind::Float).equal(&found), "{shape:?} {bits}");
                    let some = numbers.rows_on_device(1..outputs, inputs, Kind::BFloat16);
                    assert!(some.equal(&numbers.matrix(shape).rows(1..outputs, Kind::BFloat16)));
                    // The definition.
                    let place = match &order {
                        Some(order) => order.argsort(0, false),
                        None => Tensor::arange(inputs, (Kind::Int64, Device::Cpu)),
                    };
                    let of = place.divide_scalar_mode(group, "floor");
                    let wide = |t: &Tensor| t.to_kind(Kind::Float).index_select(1, &of);
                    let expected = (parts.codes.to_kind(Kind::Float) - wide(&parts.zeros)) * wide(&parts.scales);
                    let found = numbers.order().map_or_else(|| found.shallow_clone(), |order| order.undo(&found));
                    assert!(found.equal(&expected), "{shape:?} {bits} {ordered}");
                    assert!(numbers.order().is_none_or(|order| order.undo(&order.apply(&expected)).equal(&expected)));
                }
            }
        }
    }
}
