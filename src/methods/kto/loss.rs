//! The losses of answers labelled good or bad.
//!
//! With `r = log p(y | x) - log p_ref(y | x)`, summed over the answer's tokens, and `z` the reference point:
//!
//! ```text
//! kto       good: w_d (1 - s(b (r - z)))      bad: w_u (1 - s(b (z - r)))      arXiv 2402.01306, eq. 7
//! apo_zero  good: w_d (1 - s(b r))            bad: w_u s(b r)                  arXiv 2408.06266, eq. 7, unpaired
//! ```
//!
//! `s` is the logistic function, `b` beta, `w_d` and `w_u` the weights. `z` estimates the KL divergence between policy
//! and reference: the mean of r over mismatched answers (each prompt with the answer to another one), at least zero,
//! and without gradient. It is estimated over all items of an optimiser step; TRL estimates it for each device batch.

use super::spec::{KtoLoss, KtoSpec};
use tch::{Device, Kind, Tensor};

/// Computes the loss of each answer: (N). `good` (N) is 1 or 0.
/// `reference_point` is a scalar.
pub fn losses(spec: &KtoSpec, ratios: &Tensor, good: &Tensor, reference_point: &Tensor) -> Tensor {
    let gap = match spec.loss {
        KtoLoss::Kto => ratios - reference_point,
        KtoLoss::ApoZero => ratios.shallow_clone(),
    };
    // 1 - s(b (z - r)) = s(b (r - z)), so the losses of good and bad answers differ only in one sign.
    let sign = good * 2.0 - 1.0;
    let weights = good * spec.desirable_weight + (-good + 1.0) * spec.undesirable_weight;
    weights * (-gap * sign * spec.beta).sigmoid()
}

/// Computes the reference point from the log-ratios of mismatched answers: a float64 scalar on `device`, 0 if there are
/// none.
pub fn reference_point(mismatched: &[Tensor], device: Device) -> Tensor {
    let zero = Tensor::zeros([], (Kind::Double, device));
    if mismatched.is_empty() {
        return zero;
    }
    // A mean that is not a number counts as zero: the loss itself shows what is wrong with the policy.
    Tensor::cat(mismatched, 0).mean(Kind::Double).fmax(&zero)
}
