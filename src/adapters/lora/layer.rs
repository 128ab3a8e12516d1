//! How a low-rank update computes, on a linear layer and on an embedding.

use crate::adapters::cached::Cached;
use crate::nn::joint_linear::{self, JointLayer, LowRank};
use crate::nn::ops::embedding_rows;
use crate::nn::weight::{add_product, is_decoding, product};
use crate::nn::{Adapter, Dense, JointForm, LayerInput};
use tch::{Kind, Tensor};

/// The low-rank update of one linear layer.
pub(super) struct Lora {
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    pub scale: f64,
    pub dropout: f64,
    /// The base weight that the update was trained on, if the adapter's file contains one that differs from the
    /// model's.
    pub own: Option<Tensor>,
    /// For decoding: A and s B, cast.
    pub cast: Cached,
}

impl Lora {
    /// Returns the update, times `scale`.
    fn update(&self, scale: f64) -> LowRank<'_> {
        LowRank { masters: [&self.a, &self.b], scale }
    }
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let clone = |t: &Tensor| t.shallow_clone();
        let own = self.own.as_ref().map(|w| Dense { weight: clone(w).into(), bias: base.bias.as_ref().map(clone) });
        let base = own.as_ref().unwrap_or(base);
        if is_decoding() {
            let [a, b] = self.cast.get(x.kind(), &[&self.a, &self.b], || [self.a.detach(), &self.b * self.scale]);
            return add_product(base.forward(x), &product(x, &a, None), &b);
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let mask = (kept < 1.0).then(|| Tensor::empty_like(x).bernoulli_float_(kept)); // zeros and ones
        let part = JointLayer::of(base, Some(self.update(self.scale / kept)));
        joint_linear::products(&LayerInput::kept(x), mask.as_ref(), &[part]).remove(0)
    }

    fn joint_form(&self, train: bool) -> Option<JointForm<'_>> {
        let plain = self.own.is_none() && (!train || self.dropout == 0.0);
        plain.then(|| JointForm { update: Some(self.update(self.scale)), output_scale: None })
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a) * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}

/// The low-rank update of an embedding: row t of `W + s (B A)^T`. It has no dropout, because its input are ids.
pub(super) struct LoraEmbedding {
    /// (R, V)
    pub a: Tensor,
    /// (D, R)
    pub b: Tensor,
    pub scale: f64,
    /// The base weight that the update was trained on, if it differs from the model's, as in [`Lora`].
    pub own: Option<Tensor>,
}

impl Adapter for LoraEmbedding {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight.dense(base.weight.kind())), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        let low = embedding_rows(&self.a.tr(), ids); // (T, R)
        let update = low.matmul(&self.b.tr()) * self.scale; // (T, D)
        embedding_rows(self.own.as_ref().unwrap_or(weight), ids).to_kind(Kind::Float) + update
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let delta = self.b.matmul(&self.a).tr() * self.scale;
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + delta).to_kind(weight.kind())
    }
}
