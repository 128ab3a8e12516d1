//! Layer normalisation.

use super::adapter::{Adapter, LayerAdapters};
use super::layer_input::LayerInput;
use super::weight::cast;
use tch::Tensor;

/// Normalises each row to mean 0 and variance 1, with a trainable scale and, in most models, shift per feature (Ba et al. 2016, arXiv
/// 1607.06450). libtorch's fused operation computes it in float32 and keeps x and two numbers per row for the backward.
pub struct LayerNorm {
    pub(super) weight: Tensor,       // (D)
    pub(super) bias: Option<Tensor>, // (D)
    pub(super) adapters: LayerAdapters,
    pub(super) eps: f64,
}

impl LayerNorm {
    /// Normalises x: (…, D) -> (…, D). The result is a layer's input that the backward recomputes, because x is kept
    /// for the norm's own backward anyway.
    pub fn forward(&self, x: &Tensor) -> LayerInput {
        let eps = self.eps;
        if let Some(groups) = self.adapters.groups() {
            let norm = |x: &Tensor, adapter: Option<&dyn Adapter>| {
                let (weight, bias) = self.scale_and_shift(x, adapter);
                normal(x, &weight, bias.as_ref(), eps)
            };
            let adapted = |adapter: &dyn Adapter, rows: &Tensor, _| norm(&x.index_select(0, rows), Some(adapter));
            return LayerInput::kept(&self.adapters.replace_rows(&groups, norm(x, None), adapted));
        }
        let (weight, bias) = self.scale_and_shift(x, self.adapters.active());
        LayerInput::row_wise(normal(x, &weight, bias.as_ref(), eps), x, || {
            let (scale, shift) = (weight.detach(), bias.as_ref().map(Tensor::detach));
            move |x| normal(x, &scale, shift.as_ref(), eps)
        })
    }

    fn scale_and_shift(&self, x: &Tensor, adapter: Option<&dyn Adapter>) -> (Tensor, Option<Tensor>) {
        let (weight, bias) = match adapter {
            Some(adapter) => (adapter.merged(&self.weight), self.bias.as_ref().map(|bias| adapter.merged_bias(bias))),
            None => (self.weight.shallow_clone(), self.bias.as_ref().map(Tensor::shallow_clone)),
        };
        (cast(&weight, x.kind()), bias.map(|bias| cast(&bias, x.kind())))
    }
}

/// Normalises over the last dimension. A weight of two dimensions (H, E) scales each head of x (T, H, E) on its own.
fn normal(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Tensor {
    if weight.dim() == 1 {
        return x.layer_norm(weight.size(), Some(weight), bias, eps, false);
    }
    let normal = x.layer_norm(&weight.size()[1..], None::<&Tensor>, None::<&Tensor>, eps, false) * weight;
    bias.map_or_else(|| normal.shallow_clone(), |bias| &normal + bias)
}
