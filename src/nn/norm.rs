//! Root-mean-square normalisation.

use super::adapter::LayerAdapters;
use super::layer_input::LayerInput;
use super::ops;
use super::weight::cast;
use tch::Tensor;

/// Root-mean-square normalisation with a trainable scale per feature.
pub struct RmsNorm {
    pub(super) weight: Tensor, // (D)
    pub(super) adapters: LayerAdapters,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// Normalises x: (…, D) -> (…, D). The result is a layer's input that the backward recomputes, because x is kept
    /// for the norm's own backward anyway.
    pub fn forward(&self, x: &Tensor) -> LayerInput {
        let weight = self.weight(x);
        self.recomputable(ops::rms_norm(x, &weight, self.eps), x, &weight)
    }

    /// Adds x and y, (…, D) each, and normalises the sum, as [`RmsNorm::forward`] does. Returns the sum and its norm.
    pub fn forward_sum(&self, x: &Tensor, y: &Tensor) -> (Tensor, LayerInput) {
        let weight = self.weight(x);
        let (sum, normal) = ops::add_rms_norm(x, y, &weight, self.eps);
        let normal = self.recomputable(normal, &sum, &weight);
        (sum, normal)
    }

    /// Returns the norm of x as an input that is recomputed from x.
    fn recomputable(&self, normal: Tensor, x: &Tensor, weight: &Tensor) -> LayerInput {
        let eps = self.eps;
        LayerInput::row_wise(normal, x, || {
            let weight = weight.detach();
            move |x| ops::rms_norm(x, &weight, eps)
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
