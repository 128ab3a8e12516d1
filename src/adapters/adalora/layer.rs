//! How AdaLoRA computes, on one layer.

use crate::adapters::base_product::base_product;
use crate::adapters::cached::Cached;
use crate::nn::joint_linear::{self, JointLayer, LowRank};
use crate::nn::weight::{add_product, is_decoding, product};
use crate::nn::{Adapter, Dense, LayerInput};
use tch::{Kind, Tensor};

/// The update of one layer: `s B diag(E) A x`.
pub(super) struct Adalora {
    /// (R, in)
    pub a: Tensor,
    /// (R, 1)
    pub e: Tensor,
    /// (out, R)
    pub b: Tensor,
    pub scale: f64,
    pub dropout: f64,
    /// For decoding: diag(E) A and s B, cast.
    pub cast: Cached,
}

impl Adalora {
    /// Computes y (S, out) + s B diag(E) A x, in decoding; may overwrite y. x (S, in)
    fn add_low_rank(&self, y: Tensor, x: &Tensor) -> Tensor {
        let factors = || [&self.a * &self.e, &self.b * self.scale];
        let [a, b] = self.cast.get(x.kind(), &[&self.a, &self.e, &self.b], factors);
        add_product(y, &product(x, &a, None), &b)
    }
}

impl Adapter for Adalora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        if self.e.size()[0] == 0 {
            return base_product(x, &base.weight, base.bias.as_ref()); // no part of the update is left
        }
        if is_decoding() {
            return self.add_low_rank(base.forward(x), x);
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let mask = (kept < 1.0).then(|| Tensor::empty_like(x).bernoulli_float_(kept)); // zeros and ones
        let a = &self.a * &self.e;
        let update = LowRank { masters: [a, self.b.shallow_clone()], scale: self.scale / kept, parameters: false };
        joint_linear::products(&LayerInput::kept(x), mask.as_ref(), &[JointLayer::of(base, Some(update))]).remove(0)
    }

    fn add_update(&self, y: Tensor, x: &Tensor) -> Option<Tensor> {
        Some(if self.e.size()[0] == 0 { y } else { self.add_low_rank(y, x) })
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let update = self.b.matmul(&(&self.a * &self.e)) * self.scale;
        (weight.to_kind(Kind::Float) + update).to_kind(weight.kind())
    }
}
