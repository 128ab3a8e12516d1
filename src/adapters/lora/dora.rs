//! DoRA (Liu et al. 2024, arXiv 2402.09353): `W' = m ∘ (W + s B A) / ||W + s B A||`, with one trained magnitude m and one
//! norm per row (in embeddings, per column). As in section 4.3 of the paper, the norm gets no gradient.
//!
//! A layer computes `(m / norm) ∘ (W x + s B A x) + bias`, so that the updated weight is never formed for the product.
//! The norms are kept until an optimiser step changes A or B. They are computed from some rows of `W + s B A` at a time.
//! The identity `||w||² + 2 s b·(A w) + s² b (A Aᵀ) b` would cost as many products, and where W and the update nearly
//! cancel, nothing would be left of its digits.

use super::embedding::LoraEmbedding;
use super::layer::Lora;
use crate::adapters::cached::Cached;
use crate::nn::joint_linear::{self, JointLayer};
use crate::nn::scale::scale_columns;
use crate::nn::weight::{cast, is_decoding, product};
use crate::nn::{Adapter, Dense, JointForm, LayerInput, Weight};
use tch::{Kind, Tensor};

/// DoRA of one linear layer.
pub(super) struct Dora {
    pub lora: Lora,
    /// (out)
    pub magnitude: Tensor,
    /// The weight (out, in) that the update is added to.
    pub weight: Weight,
    /// The norms of the rows: they depend on A and B.
    pub norms: Cached,
    /// For decoding: magnitude divided by norm.
    pub scale: Cached,
}

impl Dora {
    /// Returns the factors on the outputs, m / norm (out), in float32. Only the magnitude gets a gradient.
    fn output_scale(&self) -> Tensor {
        let Lora { a, b, .. } = &self.lora;
        let [norms] = self.norms.get(Kind::Float, &[a, b], || [row_norms(&self.weight, &self.lora)]);
        &self.magnitude / norms
    }
}

/// Returns the norms of the rows of `W + s B A`, (out) in float32.
pub(super) fn row_norms(weight: &Weight, lora: &Lora) -> Tensor {
    let (weight, [a, b]) = (weight.dense(weight.kind()), lora.factors());
    let norm = |rows: Tensor| rows.norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
    Tensor::cat(&some_rows(&weight, &b, &a, lora.scale).map(norm).collect::<Vec<_>>(), 0)
}

/// Returns the norms of the columns of `W + s (B A)^T`, (D) in float32.
pub(super) fn column_norms(weight: &Tensor, lora: &LoraEmbedding) -> Tensor {
    let weight = lora.own.as_ref().unwrap_or(weight);
    let squares = |rows: Tensor| rows.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    let sum = some_rows(weight, &lora.a.tr(), &lora.b.tr(), lora.scale).map(squares).reduce(|a, b| a + b);
    sum.map_or_else(|| Tensor::zeros([0], (Kind::Float, weight.device())), |sum| sum.sqrt().to_kind(Kind::Float))
}

/// Computes `W + s B A` in float32, some rows at a time. Records no gradients.
fn some_rows<'t>(weight: &'t Tensor, b: &'t Tensor, a: &'t Tensor, scale: f64) -> impl Iterator<Item = Tensor> + 't {
    const NUMBERS: i64 = 1 << 18; // fits into a processor's cache
    const ON_DEVICE: i64 = 1 << 22; // fewer launches
    let (rows, width) = weight.size2().expect("a matrix");
    let numbers = if weight.device().is_cuda() { ON_DEVICE } else { NUMBERS };
    let at_once = (numbers / width.max(1)).max(1);
    (0..rows).step_by(at_once as usize).map(move |row| {
        let n = at_once.min(rows - row);
        let some = |t: &Tensor| t.narrow(0, row, n);
        tch::no_grad(|| some(weight).to_kind(Kind::Float).addmm(&(some(b) * scale), a))
    })
}

impl Adapter for Dora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let dense = Dense { weight: self.weight.shallow_clone(), bias: None };
        let with_bias = |y: Tensor| match &base.bias {
            Some(bias) => &y + cast(bias, y.kind()),
            None => y,
        };
        if is_decoding() {
            let Lora { a, b, .. } = &self.lora;
            let [scale] = self.scale.get(Kind::Float, &[a, b, &self.magnitude], || [self.output_scale()]);
            return with_bias(scale_columns(&self.lora.decode(x, &dense), &scale));
        }
        let adapted = |x: &Tensor| {
            let part = JointLayer::of(&dense, Some(self.lora.update(self.lora.scale)));
            let y = joint_linear::products(&LayerInput::kept(x), None, &[part]).remove(0);
            scale_columns(&y, &self.output_scale())
        };
        let kept = if train { 1.0 - self.lora.dropout } else { 1.0 };
        if kept == 1.0 {
            return with_bias(adapted(x));
        }
        // PEFT adds to the base's result the difference that the adapter makes for the dropped-out input:
        // W x + (W' - W) x' = W' x' + W (x - x').
        let mask = Tensor::empty_like(x).bernoulli_float_(kept); // zeros and ones
        let dropped = x * mask * (1.0 / kept);
        let rest = LayerInput::kept(&(x - &dropped));
        let rest = joint_linear::products(&rest, None, &[JointLayer::of(&dense, None)]).remove(0);
        with_bias(adapted(&dropped) + rest)
    }

    fn joint_form(&self, train: bool) -> Option<JointForm> {
        let form = self.lora.joint_form(train)?;
        Some(JointForm { output_scale: Some(self.output_scale()), ..form })
    }

    fn joinable(&self) -> bool {
        self.lora.joinable()
    }

    fn factor_parameters(&self) -> Option<[Tensor; 2]> {
        self.lora.factor_parameters()
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let [a, b] = self.lora.factors();
        let sum = self.weight.dense(Kind::Float) + b.matmul(&a) * self.lora.scale;
        (sum * self.output_scale().unsqueeze(1)).to_kind(weight.kind())
    }
}

/// DoRA of an embedding: each column of the table has a magnitude.
pub(super) struct DoraEmbedding {
    pub lora: LoraEmbedding,
    /// (D)
    pub magnitude: Tensor,
    /// The norms of the columns: they depend on A and B.
    pub norms: Cached,
}

impl DoraEmbedding {
    /// Returns the factors on the columns, m / norm (D), in float32.
    fn scale(&self, weight: &Tensor) -> Tensor {
        let LoraEmbedding { a, b, .. } = &self.lora;
        let [norms] = self.norms.get(Kind::Float, &[a, b], || [column_norms(weight, &self.lora)]);
        &self.magnitude / norms
    }
}

impl Adapter for DoraEmbedding {
    fn forward(&self, x: &Tensor, base: &Dense, _train: bool) -> Tensor {
        product(x, &self.merged(&base.weight.dense(base.weight.kind())), base.bias.as_ref())
    }

    fn embed(&self, ids: &Tensor, weight: &Weight) -> Tensor {
        self.lora.embed(ids, weight) * self.scale(&weight.dense(weight.kind()))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        (self.lora.table(weight) * self.scale(weight)).to_kind(weight.kind())
    }
}
