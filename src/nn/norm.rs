//! Root-mean-square normalisation.

use super::adapter::{Adapter, LayerAdapters};
use super::layer_input::LayerInput;
use super::ops;
use super::row_adapters::RowGroup;
use super::weight::cast;
use tch::{Kind, Tensor};

/// Root-mean-square normalisation with a trainable scale per feature.
pub struct RmsNorm {
    pub(super) weight: Tensor, // (D)
    /// Added to the weight: 1 for norms whose scale is stored as its difference from 1, else 0.
    pub(super) offset: f64,
    pub(super) adapters: LayerAdapters,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// Normalises x: (…, D) -> (…, D). The result is a layer's input that the backward recomputes, because x is kept
    /// for the norm's own backward anyway.
    pub fn forward(&self, x: &Tensor) -> LayerInput {
        if let Some(groups) = self.adapters.groups() {
            return self.by_groups(&groups, x);
        }
        let weight = self.weight(x);
        self.recomputable(ops::rms_norm(x, &weight, self.eps), x, &weight)
    }

    /// Does the same, and returns x itself before it, to which a layer adds its results: the gradients of both are added in one operation.
    pub fn forward_beside(&self, x: &Tensor) -> (Tensor, LayerInput) {
        if self.adapters.groups().is_some() {
            return (x.shallow_clone(), self.forward(x));
        }
        let weight = self.weight(x);
        let (x, normal) = ops::rms_norm_beside(x, &weight, self.eps);
        let normal = self.recomputable(normal, &x, &weight);
        (x, normal)
    }

    /// Adds x and y, (…, D) each, and normalises the sum, as [`RmsNorm::forward`] does. Returns the sum and its norm.
    pub fn forward_sum(&self, x: &Tensor, y: &Tensor) -> (Tensor, LayerInput) {
        if let Some(groups) = self.adapters.groups() {
            let sum = x + y;
            let normal = self.by_groups(&groups, &sum);
            return (sum, normal);
        }
        let weight = self.weight(x);
        let (sum, normal) = ops::add_rms_norm(x, y, &weight, self.eps);
        let normal = self.recomputable(normal, &sum, &weight);
        (sum, normal)
    }

    /// Normalises rows of different adapters, without gradient.
    fn by_groups(&self, groups: &[RowGroup], x: &Tensor) -> LayerInput {
        let norm = |x: &Tensor, weight: &Tensor| ops::rms_norm(x, &cast(weight, x.kind()), self.eps);
        let adapted =
            |adapter: &dyn Adapter, rows: &Tensor, _| norm(&x.index_select(0, rows), &adapter.merged(&self.weight));
        LayerInput::kept(&self.adapters.replace_rows(groups, norm(x, &self.weight), adapted))
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
        match self.offset {
            0.0 => cast(&weight, x.kind()),
            // In float32, because a narrower number near 1 would lose most of the difference.
            offset => weight.to_kind(Kind::Float) + offset,
        }
    }
}
