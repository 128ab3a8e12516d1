//! A norm of one of the kinds that families have.

use super::design::NormKind;
use crate::nn::{LayerInput, LayerNorm, ModuleScope, RmsNorm};
use tch::Tensor;

/// A norm over the last dimension.
pub enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    /// Builds the norm of this kind at `scope`, for vectors of `width` numbers.
    pub fn build(kind: NormKind, scope: &ModuleScope, width: i64, eps: f64) -> Self {
        match kind {
            NormKind::Rms => Self::Rms(scope.rms_norm(width, eps)),
            NormKind::CentredRms => Self::Rms(scope.centred_rms_norm(width, eps)),
            NormKind::Layer { bias } => Self::Layer(scope.layer_norm_of(&[width], bias, eps)),
        }
    }

    /// Normalises x: (…, D) -> (…, D).
    pub fn forward(&self, x: &Tensor) -> LayerInput {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm) => norm.forward(x),
        }
    }

    /// Does the same, and returns x itself before it, for later additions.
    pub fn forward_beside(&self, x: &Tensor) -> (Tensor, LayerInput) {
        match self {
            Self::Rms(norm) => norm.forward_beside(x),
            Self::Layer(norm) => (x.shallow_clone(), norm.forward(x)),
        }
    }

    /// Adds x and y, (…, D) each, and normalises the sum. Returns the sum and its norm.
    pub fn forward_sum(&self, x: &Tensor, y: &Tensor) -> (Tensor, LayerInput) {
        match self {
            Self::Rms(norm) => norm.forward_sum(x, y),
            Self::Layer(norm) => {
                let sum = x + y;
                let normal = norm.forward(&sum);
                (sum, normal)
            }
        }
    }
}
