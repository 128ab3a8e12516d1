//! The loss of GRPO and its variants.
//!
//! For token t of answer i, with r = exp(new - old), A the answer's advantage and d = reference - new:
//!
//! ```text
//! l = - min( min(r, delta) A, clip(r, 1 - e_low, 1 + e_high) A )  +  beta · r (exp(d) - d - 1)
//! grpo     1/G Σ_i 1/|o_i| Σ_t l      Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4
//! dr_grpo  1/G Σ_i 1/L Σ_t l          Liu et al. 2025, arXiv 2503.20783, section 3.2; L is the longest length allowed
//! dapo     1/Σ|o_i| Σ_i Σ_t l         Yu et al. 2025, arXiv 2503.14476, eq. 8
//! gspo     as grpo, r_i = exp(1/|o_i| Σ_t (new - old))   Zheng et al. 2025, arXiv 2507.18071, eq. 5 and 7
//! ```
//!
//! Departures from the papers, all of them TRL's: the KL term is multiplied by the ratio (`kl_correction`); `min(r,
//! delta)` is two-sided clipping (INTELLECT-2, arXiv 2505.07291); with `entropy`, the mean entropy of the tokens times
//! the coefficient is subtracted. Means over tokens are over all tokens of the optimiser step.

use super::spec::{GrpoLoss, GrpoSpec};
use crate::methods::rollout::objective::{PolicyLossInputs, add_clip_metrics};
use crate::models::{Loss, Metrics};
use crate::nn::head::TargetScores;
use tch::Kind;

/// Computes the SUM of the loss over answers (over tokens for `dapo`). `longest` is the maximum answer length in
/// tokens.
pub fn loss(spec: &GrpoSpec, longest: usize, scores: &TargetScores, terms: &PolicyLossInputs) -> Loss {
    let new = &scores.log_probs;
    let whole = spec.loss == GrpoLoss::Gspo;
    let log_ratio = new - terms.old;
    // (N), or (S) if an answer has a single ratio (gspo).
    let ratio = match whole {
        true => (terms.sum_per_answer(&log_ratio) / terms.lengths).exp(),
        false => log_ratio.exp(),
    };
    let advantages = if whole { terms.advantages.shallow_clone() } else { terms.repeat_per_token(terms.advantages) };
    let (low, high) = spec.clip();
    let clipped = ratio.clamp(1.0 - low, 1.0 + high);
    let bounded = spec.delta.map_or_else(|| ratio.shallow_clone(), |delta| ratio.clamp_max(delta));
    let policy = -(&bounded * &advantages).minimum(&(&clipped * &advantages));
    let mut lost = if whole { terms.repeat_per_token(&policy) } else { policy };
    let mut metrics = Metrics::default();
    let (tokens, answers) = terms.counts();
    if let Some(reference) = terms.reference.filter(|_| spec.beta != 0.0) {
        let gap = reference - new;
        let kl = gap.exp() - &gap - 1.0;
        let kl = match spec.kl_correction {
            true if whole => kl * terms.repeat_per_token(&ratio),
            true => kl * &ratio,
            false => kl,
        };
        metrics.add("kl", &kl.sum(Kind::Float), tokens);
        lost = &lost + kl * spec.beta;
    }
    let sum = match spec.loss {
        GrpoLoss::Grpo | GrpoLoss::Gspo => (lost / terms.repeat_per_token(terms.lengths)).sum(Kind::Float),
        GrpoLoss::DrGrpo => lost.sum(Kind::Float) / longest as f64,
        GrpoLoss::Dapo => lost.sum(Kind::Float),
    };
    let sum = match scores.entropy.as_ref().filter(|_| spec.entropy != 0.0) {
        Some(entropy) => sum - entropy.sum(Kind::Float) * (spec.entropy * terms.per_token),
        None => sum,
    };
    let is_low = bounded.lt(1.0 - low).logical_and(&advantages.lt(0.0)).to_kind(Kind::Float);
    let is_high = bounded.gt(1.0 + high).logical_and(&advantages.gt(0.0)).to_kind(Kind::Float);
    add_clip_metrics(&mut metrics, terms, &is_low, &is_high, if whole { answers } else { tokens });
    Loss { sum, metrics }
}
