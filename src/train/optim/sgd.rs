//! Stochastic gradient descent with momentum (Sutskever et al. 2013, equations 1 to 4), as torch.optim.SGD computes it:
//!
//! `g <- g + wd p`, `b <- mu b + g` (`b = g` at the first step), `p <- p - lr b`, with Nesterov
//! `p <- p - lr (g + mu b)`. Weight decay is the L2 term of the loss here, not decoupled.

use super::conditional::update_each;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use tch::Tensor;

/// SGD. Without momentum a parameter has no state.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Use Nesterov momentum.
    pub nesterov: bool,
}

impl UpdateRule for Sgd {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        (self.momentum > 0.0).then(|| StateField::float("momentum", &form.shape)).into_iter().collect()
    }

    fn update(
        &self,
        slots: &[ParameterUpdate],
        StepSize { lr, decay, .. }: StepSize,
        skip: Option<&Tensor>,
    ) -> Result<()> {
        update_each(slots, skip, |s| {
            let mut p = s.param.shallow_clone();
            let g = if decay == 0.0 { s.grad.shallow_clone() } else { &s.grad + &p * decay };
            let step = match s.state.first() {
                // Zeros before the first step: mu 0 + g = g.
                Some(momentum) => {
                    let mut momentum = momentum.shallow_clone();
                    momentum *= self.momentum;
                    momentum += &g;
                    if self.nesterov { g + momentum * self.momentum } else { momentum }
                }
                None => g,
            };
            p -= step * lr;
        })
    }
}
