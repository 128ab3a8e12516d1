//! Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1), as the authors' schedulefree computes it.
//!
//! Gradients are taken at `y = (1 - b1) z + b1 x`; z makes AdamW's steps without a first moment, x is the average of
//! all z, weighted by the square of the largest learning rate so far. The parameter holds y; x is measured and becomes
//! the result. With `u = g / (sqrt(v / (1 - b2^t)) + eps) + wd y` and the weight c of the newest z: `y <- (1 - c) y + c
//! z + lr (b1 (1 - c) - 1) u`, `z <- z - lr u`, and `x = y + (1 - 1 / b1) (z - y)`.

use super::conditional::update_each;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule, zeros};
use crate::error::Result;
use tch::{Kind, Tensor};

/// Schedule-free AdamW. The state of a parameter is z and the second moment.
#[derive(Debug, Clone, Copy)]
pub struct ScheduleFree {
    /// Weight of the average in the trained point, and decay of the second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The largest learning rate so far.
    largest: f64,
    /// Sum of the weights of all z so far.
    total: f64,
    /// Weight c of the newest z in the average.
    share: f64,
    /// `largest` and `total` before the last step.
    before: (f64, f64),
}

impl ScheduleFree {
    /// Creates the rule before its first step.
    pub fn new(betas: (f64, f64), eps: f64) -> Self {
        Self { betas, eps, largest: 0.0, total: 0.0, share: 0.0, before: (0.0, 0.0) }
    }
}

impl UpdateRule for ScheduleFree {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        vec![StateField::float("z", &form.shape), StateField::float("second", &form.shape)]
    }

    fn initial_state(&self, form: &ParameterInfo, param: &Tensor) -> Vec<Tensor> {
        let state = zeros(&self.layout(form), param.device());
        state[0].shallow_clone().copy_(param);
        state
    }

    fn begin(&mut self, lr: f64) {
        self.before = (self.largest, self.total);
        self.largest = self.largest.max(lr);
        let weight = self.largest.powi(2);
        self.total += weight;
        self.share = if self.total > 0.0 { weight / self.total } else { 0.0 };
    }

    fn uncount(&mut self) {
        (self.largest, self.total) = self.before;
    }

    fn update(
        &self,
        slots: &[ParameterUpdate],
        StepSize { lr, decay, step }: StepSize,
        skip: Option<&Tensor>,
    ) -> Result<()> {
        let (b1, b2) = self.betas;
        let correction = 1.0 - b2.powf(step as f64);
        update_each(slots, skip, |s| {
            let (mut y, mut z, mut v) =
                (s.param.shallow_clone(), s.state[0].shallow_clone(), s.state[1].shallow_clone());
            v *= b2;
            v += s.grad.square() * (1.0 - b2);
            let mut u = &s.grad / ((&v / correction).sqrt_() + self.eps);
            if decay != 0.0 {
                u += &y * decay;
            }
            let _ = y.lerp_(&z, self.share);
            y += &u * (lr * (b1 * (1.0 - self.share) - 1.0));
            z -= u * lr;
        })
    }

    fn averaged(&self, param: &Tensor, state: &[Tensor]) -> Option<Tensor> {
        Some(param.to_kind(Kind::Float).lerp(&state[0], 1.0 - 1.0 / self.betas.0))
    }

    fn scalar_state(&self) -> Vec<(&'static str, f64)> {
        vec![("largest", self.largest), ("total", self.total)]
    }

    fn set_scalar(&mut self, name: &str, value: f64) {
        match name {
            "largest" => self.largest = value,
            _ => self.total = value,
        }
    }
}
