//! The loss of simple preference optimisation (arXiv 2405.14734, eq. 6).
//!
//! With `l(y)` the MEAN log-probability of an answer's tokens and `d = b (l(chosen) - l(rejected)) - gamma`:
//!
//! ```text
//! loss = -(1 - e) log s(d) - e log s(-d)
//! ```
//!
//! `s` is the logistic function, `b` beta, `e` the label smoothing (not in the paper). `nll` adds `- l(chosen)` of
//! each pair (TRL's `cpo_alpha`, which uses sums over a batch instead).

use super::spec::SimpoSpec;
use crate::methods::pairs::PairStatistics;
use tch::Tensor;

/// Computes the loss of each pair: (P), from mean log-probabilities.
pub fn losses(spec: &SimpoSpec, means: &PairStatistics) -> Tensor {
    let d = means.difference() * spec.beta - spec.gamma;
    let e = spec.label_smoothing;
    let preferred = -(d.log_sigmoid() * (1.0 - e)) - (-d).log_sigmoid() * e;
    if spec.nll == 0.0 { preferred } else { preferred - &means.chosen * spec.nll }
}
