//! The product with a layer's frozen weight, for adapters that change its input or add to its output; and other work on
//! rows in decoding.

use crate::native;
use crate::nn::joint_linear::{self, JointLayer};
use crate::nn::weight::{cast, is_decoding};
use crate::nn::{LayerInput, Weight};
use tch::{Device, Tensor};

/// Computes `x W^T + bias`: (T, in) -> (T, out). Nothing is kept for the backward but the weight itself; in decoding a
/// row's result does not depend on the other rows.
pub(super) fn base_product(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
    if is_decoding() {
        return weight.product(x, bias.map(|b| cast(b, x.kind())).as_ref());
    }
    joint_linear::products(&LayerInput::kept(x), None, &[JointLayer::alone(weight, bias, None)]).remove(0)
}

/// Computes `compute(x)` for x (T, in) in decoding, which works on each row alone but whose last bits may depend on the number
/// of rows. Where the products of decoding promise that they do not, rows are computed one by one.
pub(super) fn row_by_row(x: &Tensor, compute: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let rows = x.size()[0];
    if rows < 2 || x.device() != Device::Cpu || rows > native::product_rows(x.kind(), x.kind()) {
        return compute(x);
    }
    Tensor::cat(&(0..rows).map(|row| compute(&x.narrow(0, row, 1))).collect::<Vec<_>>(), 0)
}
