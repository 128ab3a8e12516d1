//! The loss of RLOO.
//!
//! With A_i the advantage of answer i, r_i = exp(Σ_t (new - old)):
//!
//! ```text
//! loss = - 1/n Σ_i min( r_i A_i, clip(r_i, 1 - e, 1 + e_high) A_i )
//! ```
//!
//! Departure from the paper, as in TRL: the ratio r. With one optimiser step per round of sampling it is 1, and the
//! gradient is that of REINFORCE.

use super::spec::RlooSpec;
use crate::methods::rollout::objective::{PolicyLossInputs, add_clip_metrics};
use crate::models::{Loss, Metrics};
use crate::nn::head::TargetScores;
use tch::Kind;

/// Computes the SUM of the loss over answers.
pub fn loss(spec: &RlooSpec, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss {
    let ratio = terms.sum_per_answer(&(&scores.log_probs - terms.old)).exp(); // (S)
    let (low, high) = (spec.epsilon, spec.epsilon_high.unwrap_or(spec.epsilon));
    let clipped = ratio.clamp(1.0 - low, 1.0 + high);
    let sum = -(&ratio * terms.advantages).minimum(&(clipped * terms.advantages)).sum(Kind::Float);
    let is_low = ratio.lt(1.0 - low).logical_and(&terms.advantages.lt(0.0)).to_kind(Kind::Float);
    let is_high = ratio.gt(1.0 + high).logical_and(&terms.advantages.gt(0.0)).to_kind(Kind::Float);
    let mut metrics = Metrics::default();
    let (_, answers) = terms.counts();
    add_clip_metrics(&mut metrics, terms, &is_low, &is_high, answers);
    Loss { sum, metrics }
}
