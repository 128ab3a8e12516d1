//! The losses of direct preference optimisation.
//!
//! With `r(y) = log p(y | x) - log p_ref(y | x)`, summed over the answer's tokens, `d = r(chosen) - r(rejected)`, and
//! `d_mean` the same difference after each of the two was divided by its answer's number of tokens:
//!
//! ```text
//! sigmoid       -(1 - e) log s(b d) - e log s(-b d)                  arXiv 2305.18290, eq. 7; e: conservative DPO
//! sigmoid_norm  -log s(b d_mean)                                     the same with mean log-probabilities
//! ipo           (d_mean - 1 / (2 b))^2                               arXiv 2310.12036, eq. 17, b as tau
//! hinge         max(0, 1 - b d)                                      arXiv 2305.10425 (SLiC), 2309.06657
//! robust        (-(1 - e) log s(b d) + e log s(-b d)) / (1 - 2 e)    arXiv 2403.00409, eq. 11
//! exo           s(b d) (log s(b d) - log(1 - e)) + s(-b d) (log s(-b d) - log e)    arXiv 2402.00856, eq. 16
//! ```
//!
//! `s` is the logistic function, `b` beta, `e` the label smoothing. The paper of `ipo` takes no means over tokens; TRL
//! and the paper's authors do. `nll` adds `- log p(chosen | x) / tokens` of each pair (TRL's `sft` loss takes the mean
//! over all tokens of a batch instead, which depends on how a step is cut into batches).

use super::spec::{DpoLoss, DpoSpec};
use crate::methods::pairs::PairStatistics;
use tch::Tensor;

/// Computes the loss of each pair: (P). `policy` and `reference` hold log-probabilities of answers, `lengths` their
/// token counts.
pub fn losses(spec: &DpoSpec, policy: &PairStatistics, reference: &PairStatistics, lengths: &PairStatistics) -> Tensor {
    let (beta, smoothing) = (spec.beta, spec.smoothing());
    let ratios = policy.zip_with(reference, |p, r| p - r);
    let per_token = || ratios.zip_with(lengths, |ratio, n| ratio / n).difference();
    let scaled = |d: Tensor| (d * beta, smoothing);
    let preferred = match spec.loss {
        DpoLoss::Sigmoid => {
            let (d, e) = scaled(ratios.difference());
            -(d.log_sigmoid() * (1.0 - e)) - (-d).log_sigmoid() * e
        }
        DpoLoss::SigmoidNorm => -(per_token() * beta).log_sigmoid(),
        DpoLoss::Ipo => (per_token() - 1.0 / (2.0 * beta)).square(),
        DpoLoss::Hinge => (-(ratios.difference() * beta) + 1.0).relu(),
        DpoLoss::Robust => {
            let (d, e) = scaled(ratios.difference());
            (-(d.log_sigmoid() * (1.0 - e)) + (-d).log_sigmoid() * e) / (1.0 - 2.0 * e)
        }
        DpoLoss::Exo => {
            let (d, e) = scaled(ratios.difference());
            let lost = -&d;
            d.sigmoid() * (d.log_sigmoid() - (1.0 - e).ln()) + lost.sigmoid() * (lost.log_sigmoid() - e.ln())
        }
    };
    if spec.nll == 0.0 {
        return preferred;
    }
    preferred - &policy.chosen / &lengths.chosen * spec.nll
}
