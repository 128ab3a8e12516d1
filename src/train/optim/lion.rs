//! Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2):
//!
//! `c = b1 m + (1 - b1) g`, `p <- p - lr (sign(c) + wd p)`, `m <- b2 m + (1 - b2) g`.

use super::conditional::update_each;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use tch::Tensor;

/// Lion: one momentum; every step of a parameter has the size of the learning rate.
#[derive(Debug, Clone, Copy)]
pub struct Lion {
    /// Weights of the momentum in the update and in its own decay.
    pub betas: (f64, f64),
}

impl UpdateRule for Lion {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        vec![StateField::float("momentum", &form.shape)]
    }

    fn update(
        &self,
        slots: &[ParameterUpdate],
        StepSize { lr, decay, .. }: StepSize,
        skip: Option<&Tensor>,
    ) -> Result<()> {
        let (b1, b2) = self.betas;
        update_each(slots, skip, |s| {
            let (mut p, mut m) = (s.param.shallow_clone(), s.state[0].shallow_clone());
            let sign = (&m * b1 + &s.grad * (1.0 - b1)).sign_();
            p *= 1.0 - lr * decay;
            p -= sign * lr;
            m *= b2;
            m += &s.grad * (1.0 - b2);
        })
    }
}
