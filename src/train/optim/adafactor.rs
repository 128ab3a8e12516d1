//! Adafactor (Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5), as transformers' Adafactor with a given
//! learning rate (`relative_step=False`) computes it:
//!
//! `b2 = 1 - t^(-decay_rate)`; of `g^2 + 1e-30` a matrix keeps running means of its rows R and columns C only,
//! `v = R C / mean(R)`, other parameters keep v whole; `u = g / sqrt(v)`, `u <- u / max(1, rms(u) / clip)`,
//! `p <- p - lr wd p - lr u`; with `scale_parameter`, lr is multiplied by `max(1e-3, rms(p))`; with `momentum` b,
//! `lr u` is averaged over time first.

use super::conditional::update_each;
use super::rule::{ParameterInfo, ParameterUpdate, StateField, StepSize, UpdateRule};
use crate::error::Result;
use tch::{Kind, Tensor};

/// Added to squared gradients.
const SMALLEST: f64 = 1e-30;
/// Lower bound of a parameter's root mean square under `scale_parameter`.
const LEAST_SCALE: f64 = 1e-3;

/// Adafactor. The state of a matrix (N, M) has N + M numbers.
#[derive(Debug, Clone, Copy)]
pub struct Adafactor {
    /// Exponent of the decay of second moments.
    pub decay_rate: f64,
    /// Largest root mean square of an update.
    pub clip: f64,
    /// Decay of the first moment; `None`: no first moment.
    pub momentum: Option<f64>,
    /// Scale steps by the size of the parameter.
    pub scale_parameter: bool,
}

fn rms(t: &Tensor) -> Tensor {
    t.norm() / (t.numel() as f64).sqrt()
}

impl UpdateRule for Adafactor {
    fn layout(&self, form: &ParameterInfo) -> Vec<StateField> {
        let n = form.shape.len();
        let mut fields = match n {
            0 | 1 => vec![StateField::float("second", &form.shape)],
            _ => {
                let columns = [&form.shape[..n - 2], &form.shape[n - 1..]].concat();
                vec![StateField::float("rows", &form.shape[..n - 1]), StateField::float("columns", &columns)]
            }
        };
        fields.extend(self.momentum.map(|_| StateField::float("first", &form.shape)));
        fields
    }

    fn update(
        &self,
        slots: &[ParameterUpdate],
        StepSize { lr, decay, step }: StepSize,
        skip: Option<&Tensor>,
    ) -> Result<()> {
        let b2 = 1.0 - (step as f64).powf(-self.decay_rate);
        update_each(slots, skip, |s| {
            let mut p = s.param.shallow_clone();
            let squares = s.grad.square() + SMALLEST;
            let average = |state: &Tensor, new: Tensor| {
                let mut state = state.shallow_clone();
                state *= b2;
                state += new * (1.0 - b2);
                state
            };
            let mut u = match s.form.shape.len() {
                0 | 1 => average(&s.state[0], squares).rsqrt() * &s.grad,
                _ => {
                    let mean = |along: i64| squares.mean_dim([along].as_slice(), false, Kind::Float);
                    let (rows, columns) = (average(&s.state[0], mean(-1)), average(&s.state[1], mean(-2)));
                    let whole = rows.mean_dim([-1i64].as_slice(), true, Kind::Float);
                    let rows = (rows / whole).rsqrt_().unsqueeze(-1);
                    (&s.grad * rows) * columns.unsqueeze(-2).rsqrt()
                }
            };
            u /= (rms(&u) / self.clip).clamp_min(1.0);
            match self.scale_parameter {
                true => u *= rms(&p).clamp_min(LEAST_SCALE) * lr,
                false => u *= lr,
            }
            if let Some(b1) = self.momentum {
                let mut first = s.state[s.state.len() - 1].shallow_clone();
                first *= b1;
                first += u * (1.0 - b1);
                u = first;
            }
            if decay > 0.0 {
                match self.scale_parameter {
                    true => p *= 1.0 - rms(&p).clamp_min(LEAST_SCALE) * (lr * decay),
                    false => p *= 1.0 - lr * decay,
                }
            }
            p -= u;
        })
    }
}
