//! How a low-rank update of an embedding computes.

use crate::nn::ops::embedding_rows;
use crate::nn::weight::{is_decoding, product};
use crate::nn::{Adapter, Dense, Weight};
use tch::{Kind, Tensor};

/// The low-rank update of an embedding: row t of `W + s (B A)^T`. It has no dropout, because its input are ids.
pub(super) struct LoraEmbedding {
    /// (R, V)
    pub a: Tensor,
    /// (D, R)
    pub b: Tensor,
    pub scale: f64,
    /// The base weight that the update was trained on, if the adapter's file contains one that differs from the
    /// model's.
    pub own: Option<Tensor>,
}

impl LoraEmbedding {
    /// Returns the updated table in float32: (V, D).
    pub fn table(&self, weight: &Tensor) -> Tensor {
        self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + self.b.matmul(&self.a).tr() * self.scale
    }
}

impl Adapter for LoraEmbedding {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight.dense(base.weight.kind())), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Weight) -> Tensor {
        let low = embedding_rows(&self.a.tr(), ids); // (T, R)
        // In decoding a row's result must not depend on the other rows.
        let update = if is_decoding() { product(&low, &self.b, None) } else { low.matmul(&self.b.tr()) } * self.scale; // (T, D)
        let base = self.own.as_ref().map_or_else(|| weight.rows(ids), |own| embedding_rows(own, ids));
        base.to_kind(Kind::Float) + update
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        self.table(weight).to_kind(weight.kind())
    }
}
