//! How VeRA computes, on one layer.

use crate::adapters::base_product::base_product;
use crate::adapters::cached::Cached;
use crate::nn::recomputed::recomputed;
use crate::nn::scale::scale_columns;
use crate::nn::weight::{add_product, cast, is_decoding, product};
use crate::nn::{Adapter, Dense};
use std::cell::OnceCell;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The projections of all layers, once they are known: A (R, most inputs) and B (most outputs, R).
#[derive(Default)]
pub(super) struct Projections(pub OnceCell<[Tensor; 2]>);

impl Projections {
    /// Returns the parts of A and B for a layer with this many inputs and outputs: (R, in), (out, R).
    fn of(&self, inputs: i64, outputs: i64) -> [Tensor; 2] {
        let [a, b] = self.0.get().expect("set when the model was built");
        [a.narrow(1, 0, inputs), b.narrow(0, 0, outputs)]
    }
}

/// The update of one layer: `diag(b) B diag(d) A x`.
pub(super) struct Vera {
    pub projections: Rc<Projections>,
    /// (out) b
    pub outer: Tensor,
    /// (R) d
    pub inner: Tensor,
    pub inputs: i64,
    pub dropout: f64,
    /// For decoding: diag(d) A and diag(b) B, cast.
    pub cast: Cached,
}

impl Vera {
    fn outputs(&self) -> i64 {
        self.outer.size()[0]
    }

    /// Returns diag(d) A (R, in) and diag(b) B (out, R), float32.
    fn factors(&self) -> [Tensor; 2] {
        let [a, b] = self.projections.of(self.inputs, self.outputs());
        [a * self.inner.unsqueeze(-1), b * self.outer.unsqueeze(-1)]
    }
}

/// Computes `b ∘ B (d ∘ A x)` for x (T, in), given A, B, d and b.
fn update(x: &Tensor, parameters: &[Tensor]) -> Tensor {
    let [a, b, inner, outer] = parameters else { unreachable!("four parameters are given") };
    let kind = x.kind();
    let low = scale_columns(&x.linear(&cast(a, kind), None::<&Tensor>), inner); // (T, R)
    scale_columns(&low.linear(&cast(b, kind), None::<&Tensor>), outer)
}

impl Adapter for Vera {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let y = base_product(x, &base.weight, base.bias.as_ref());
        if is_decoding() {
            let [a, b] = self.cast.get(x.kind(), &[&self.inner, &self.outer], || self.factors());
            return add_product(y, &product(x, &a, None), &b);
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let [a, b] = self.projections.of(self.inputs, self.outputs());
        let parameters = [&a, &b, &self.inner, &self.outer];
        match kept < 1.0 {
            // The mask is zeros and ones: 1 / (1 - p) would be rounded in bfloat16.
            true => y + recomputed(&(x * Tensor::empty_like(x).bernoulli_float_(kept)), &parameters, update) / kept,
            false => y + recomputed(x, &parameters, update),
        }
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let [a, b] = self.factors();
        (weight.to_kind(Kind::Float) + b.matmul(&a)).to_kind(weight.kind())
    }
}
