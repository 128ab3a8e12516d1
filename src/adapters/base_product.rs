//! The product with a layer's frozen weight, for adapters that change its input or add to its output.

use crate::nn::joint_linear::{self, JointLayer};
use crate::nn::weight::{cast, is_decoding};
use crate::nn::{LayerInput, Weight};
use tch::Tensor;

/// Computes `x W^T + bias`: (T, in) -> (T, out). Nothing is kept for the backward but the weight itself; in decoding a
/// row's result does not depend on the other rows.
pub(super) fn base_product(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
    if is_decoding() {
        return weight.product(x, bias.map(|b| cast(b, x.kind())).as_ref());
    }
    let layer = JointLayer { weight, bias, update: None, joinable: false };
    joint_linear::products(&LayerInput::kept(x), None, &[layer]).remove(0)
}
