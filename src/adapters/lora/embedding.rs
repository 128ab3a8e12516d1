//! How a low-rank update of an embedding computes.

use crate::adapters::cached::Cached;
use crate::nn::ops::embedding_rows;
use crate::nn::weight::{add_product, cast, is_decoding, product};
use crate::nn::{Adapter, Dense, Weight};
use tch::{Kind, Tensor};

/// The low-rank update of an embedding: row t of `W + s (B A)^T`. It has no dropout, because its input are ids.
pub(super) struct LoraEmbedding {
    /// (R, V)
    pub a: Tensor,
    /// (D, R)
    pub b: Tensor,
    pub scale: f64,
    /// Dropout on the input of an output head that has the same update.
    pub dropout: f64,
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

    fn for_tied_head(&self) -> Option<Box<dyn Adapter>> {
        let (a, b, own) = (self.a.tr(), self.b.tr(), self.own.as_ref().map(Tensor::shallow_clone));
        let (scale, dropout, laid_out) = (self.scale, self.dropout, Cached::default());
        Some(Box::new(TiedHead { a: b, b: a, scale, own, dropout, laid_out }))
    }
}

/// The same update of an output head that shares the embedding's weight: `y = W x + s B A dropout(x)`.
struct TiedHead {
    /// (R, D), the embedding's B transposed.
    a: Tensor,
    /// (V, R), the embedding's A transposed.
    b: Tensor,
    scale: f64,
    own: Option<Tensor>,
    dropout: f64,
    /// For decoding, whose kernels need it: A and s B, cast, in the order of their rows.
    laid_out: Cached,
}

impl Adapter for TiedHead {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let dense = match &self.own {
            Some(own) => product(x, own, base.bias.as_ref()),
            None => base.forward(x),
        };
        if is_decoding() {
            let [a, b] = self
                .laid_out
                .get(x.kind(), &[&self.a, &self.b], || [self.a.contiguous(), (&self.b * self.scale).contiguous()]);
            return add_product(dense, &product(x, &a, None), &b);
        }
        let dropped = if train && self.dropout > 0.0 { x.dropout(self.dropout, true) } else { x.shallow_clone() };
        let low = product(&dropped, &cast(&self.a, x.kind()), None);
        dense + product(&low, &cast(&self.b, x.kind()), None) * self.scale
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let sum = self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + self.b.matmul(&self.a) * self.scale;
        sum.to_kind(weight.kind())
    }
}
