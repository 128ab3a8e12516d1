//! How a low-rank update of a linear layer computes.

use crate::adapters::cached::Cached;
use crate::nn::joint_linear::{self, JointLayer, LowRank};
use crate::nn::weight::{add_product, cast, is_decoding, product};
use crate::nn::{Adapter, Dense, JointForm, LayerInput};
use tch::{Kind, Tensor};

/// The low-rank update of one linear layer.
pub(super) struct Lora {
    /// (R, in)
    pub a: Tensor,
    /// (out, R)
    pub b: Tensor,
    /// (out) behind B, if there is one.
    pub bias: Option<Tensor>,
    /// The values that A and B started with, if the update is their change since then.
    pub start: Option<[Tensor; 2]>,
    pub scale: f64,
    pub dropout: f64,
    /// The base weight that the update was trained on, if the adapter's file contains one that differs from the
    /// model's.
    pub own: Option<Tensor>,
    /// For decoding: A and s B, cast.
    pub cast: Cached,
}

impl Lora {
    /// Returns the factors whose product is the update; differentiable.
    pub fn factors(&self) -> [Tensor; 2] {
        match &self.start {
            None => [self.a.shallow_clone(), self.b.shallow_clone()],
            Some(start) => change(&self.a, &self.b, start),
        }
    }

    /// Returns the update, times `scale`.
    pub fn update(&self, scale: f64) -> LowRank {
        LowRank { masters: self.factors(), scale, parameters: self.start.is_none() }
    }

    /// Returns the base that the update was trained on: its own, if it has one.
    pub fn base(&self, base: &Dense) -> Dense {
        let weight = self.own.as_ref().map(|w| w.shallow_clone().into());
        Dense {
            weight: weight.unwrap_or_else(|| base.weight.shallow_clone()),
            bias: base.bias.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// Computes the layer in decoding: (S, in) -> (S, out).
    pub fn decode(&self, x: &Tensor, base: &Dense) -> Tensor {
        self.add_low_rank(base.forward(x), x)
    }

    /// Computes y (S, out) + scale · B A x, in decoding; may overwrite y. x (S, in)
    fn add_low_rank(&self, y: Tensor, x: &Tensor) -> Tensor {
        let [a, b] = self.cast.get(x.kind(), &[&self.a, &self.b], || {
            let [a, b] = self.factors();
            [a, b * self.scale]
        });
        add_product(y, &product(x, &a, None), &b)
    }

    fn add_bias(&self, y: Tensor) -> Tensor {
        match &self.bias {
            Some(bias) => &y + cast(&(bias * self.scale), y.kind()),
            None => y,
        }
    }
}

/// Returns the factors of `B A - B0 A0`, where `start` is A0 and B0: `[B - B0, B0]` and `[A; A - A0]`, of twice the rank.
/// Both summands are as small as the change, so that little is lost when they are rounded to bfloat16.
pub(super) fn change(a: &Tensor, b: &Tensor, start: &[Tensor; 2]) -> [Tensor; 2] {
    let [a0, b0] = start;
    [Tensor::cat(&[a, &(a - a0)], 0), Tensor::cat(&[&(b - b0), b0], 1)]
}

impl Adapter for Lora {
    fn forward(&self, x: &Tensor, base: &Dense, train: bool) -> Tensor {
        let base = self.base(base);
        if is_decoding() {
            return self.add_bias(self.decode(x, &base));
        }
        let kept = if train { 1.0 - self.dropout } else { 1.0 };
        let mask = (kept < 1.0).then(|| Tensor::empty_like(x).bernoulli_float_(kept)); // zeros and ones
        let part = JointLayer::of(&base, Some(self.update(self.scale / kept)));
        self.add_bias(joint_linear::products(&LayerInput::kept(x), mask.as_ref(), &[part]).remove(0))
    }

    fn add_update(&self, y: Tensor, x: &Tensor) -> Option<Tensor> {
        self.own.is_none().then(|| self.add_bias(self.add_low_rank(y, x)))
    }

    fn joint_form(&self, train: bool) -> Option<JointForm> {
        let plain = self.own.is_none() && self.bias.is_none() && (!train || self.dropout == 0.0);
        plain.then(|| JointForm { update: Some(self.update(self.scale)), output_scale: None })
    }

    fn adds_bias(&self) -> bool {
        self.bias.is_some()
    }

    fn joinable(&self) -> bool {
        let ranks = if self.start.is_some() { 2 } else { 1 } * self.a.size()[0];
        let plain = self.own.is_none() && self.bias.is_none() && self.dropout == 0.0;
        plain && LowRank::is_joinable(ranks, [&self.a, &self.b])
    }

    fn factor_parameters(&self) -> Option<[Tensor; 2]> {
        self.start.is_none().then(|| [&self.a, &self.b].map(Tensor::shallow_clone))
    }

    fn merged(&self, weight: &Tensor) -> Tensor {
        let [a, b] = self.factors();
        (self.own.as_ref().unwrap_or(weight).to_kind(Kind::Float) + b.matmul(&a) * self.scale).to_kind(weight.kind())
    }

    fn merged_bias(&self, bias: &Tensor) -> Tensor {
        match &self.bias {
            Some(more) => bias.to_kind(Kind::Float) + more * self.scale,
            None => bias.shallow_clone(),
        }
    }
}
