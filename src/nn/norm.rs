//! Root-mean-square normalisation.

use super::joint_linear::LayerInput;
use super::linear::{LayerAdapters, cast};
use super::ops;
use tch::Tensor;

/// Root-mean-square normalisation with a trainable scale per feature.
pub struct RmsNorm {
    pub(super) weight: Tensor, // (D)
    pub(super) adapters: LayerAdapters,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// Normalises x: (…, D) -> (…, D).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        ops::rms_norm(x, &self.weight(x), self.eps)
    }

    /// Normalises x as the input of linear layers whose backward recomputes it: x is kept for the norm's own backward
    /// anyway.
    pub fn input(&self, x: &Tensor) -> LayerInput {
        let weight = self.weight(x);
        let eps = self.eps;
        LayerInput::recomputable(ops::rms_norm(x, &weight, eps), || {
            let (kept, again) = (x.detach(), weight.detach());
            move || ops::rms_norm(&kept, &again, eps)
        })
    }

    fn weight(&self, x: &Tensor) -> Tensor {
        let weight = match self.adapters.active() {
            Some(adapter) => adapter.merged(&self.weight),
            None => self.weight.shallow_clone(),
        };
        cast(&weight, x.kind())
    }
}
