//! Normalisation layers.

use super::linear::{Attached, cast};
use super::ops;
use tch::Tensor;

/// Root-mean-square normalisation with a learnt scale per feature.
pub struct RmsNorm {
    pub(super) weight: Tensor, // (D)
    pub(super) adapters: Attached,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// (…, D) -> (…, D)
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = match self.adapters.active() {
            Some(adapter) => adapter.merged(&self.weight),
            None => self.weight.shallow_clone(),
        };
        ops::rms_norm(x, &cast(&weight, x.kind()), self.eps)
    }
}
