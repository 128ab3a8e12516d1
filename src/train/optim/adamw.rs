//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2), as torch.optim.AdamW computes it:
//!
//! `p <- p - lr wd p`, `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`,
//! `p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.

use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use crate::native;
use tch::{Kind, Tensor};

/// AdamW, computed by one fused call over all parameters of a group.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Decay of the first and second moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl UpdateRule for AdamW {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        vec![StateField::float("first", &form.shape), StateField::float("second", &form.shape)]
    }

    fn update(&self, slots: &[ParameterUpdate], pace: StepSize, skip: Option<&Tensor>) -> Result<()> {
        let Some(one) = slots.first() else { return Ok(()) };
        let count = Tensor::full([] as [i64; 0], pace.step as f64, (Kind::Float, one.param.device()));
        let list = |of: &dyn Fn(&ParameterUpdate) -> Tensor| slots.iter().map(of).collect::<Vec<_>>();
        Ok(native::fused_adamw(
            &list(&|s| s.param.shallow_clone()),
            &list(&|s| s.grad.shallow_clone()),
            &list(&|s| s.state[0].shallow_clone()),
            &list(&|s| s.state[1].shallow_clone()),
            &list(&|_| count.shallow_clone()),
            native::AdamwSettings { lr: pace.lr, betas: self.betas, decay: pace.decay, eps: self.eps },
            skip,
        )?)
    }
}
