//! Layer normalisation.

use super::linear::{Attached, cast};
use tch::Tensor;

/// Normalisation to mean 0 and variance 1 with a learnt scale and shift per feature (Ba et al. 2016, arXiv 1607.06450).
/// libtorch's fused operation computes it in float32 and keeps x and two numbers a row.
pub struct LayerNorm {
    pub(super) weight: Tensor, // (D)
    pub(super) bias: Tensor,   // (D)
    pub(super) adapters: Attached,
    pub(super) eps: f64,
}

impl LayerNorm {
    /// (…, D) -> (…, D)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = match self.adapters.active() {
            Some(adapter) => (adapter.merged(&self.weight), adapter.merged_bias(&self.bias)),
            None => (self.weight.shallow_clone(), self.bias.shallow_clone()),
        };
        let (weight, bias) = (cast(&weight, x.kind()), cast(&bias, x.kind()));
        x.layer_norm(weight.size(), Some(&weight), Some(&bias), self.eps, false)
    }
}
