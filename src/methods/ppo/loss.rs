//! The losses of PPO on answer tokens. Pure.
//!
//! With `r = p(x) / p_old(x)` for a sampled token, advantage A, value V, return R, V_old the value at sampling time:
//!
//! ```text
//! policy   max(-A r, -A clip(r, 1 - clip, 1 + clip))
//! value    value_coef / 2 * max((V - R)^2, (clip(V, V_old - clip_value, V_old + clip_value) - R)^2)
//! entropy  -entropy_coef * H(p)
//! KL       kl_coef * term of the estimator, where the divergence is part of the loss and not of the reward
//! ```
//!
//! Policy: Schulman et al. 2017, arXiv 1707.06347, equation 7 (negated); the sum of all: equation 9; clipped values:
//! the authors' own code and Engstrom et al. 2020, arXiv 2005.12729, equation 2. Deviation from TRL: the loss of a
//! mini-batch is one mean over its tokens, independent of the number of micro-batches.

use super::kl::KlEstimator;
use crate::models::{Loss, Metrics};
use tch::{Kind, Tensor};

/// Clip ranges and weights of the loss's parts. A clip range of 0 means no clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoLossWeights {
    /// How far from 1 the ratio may be.
    pub clip: f64,
    /// How far from the old value a value may be.
    pub clip_value: f64,
    /// Weight of the value function's loss.
    pub value: f64,
    /// Weight of the entropy bonus.
    pub entropy: f64,
    /// Estimator and coefficient of the divergence in the loss.
    pub kl: Option<(KlEstimator, f64)>,
}

/// Numbers of the tokens from before the update: (N) each, float32, without gradient.
pub struct RolloutTensors {
    /// ln p_old
    pub log_probs: Tensor,
    /// Advantages.
    pub advantages: Tensor,
    /// Values before the update.
    pub values: Tensor,
    /// Returns.
    pub returns: Tensor,
    /// ln p under the reference, if the divergence is part of the loss.
    pub reference: Option<Tensor>,
}

impl RolloutTensors {
    fn count(&self) -> f64 {
        self.log_probs.numel() as f64
    }
}

impl PpoLossWeights {
    /// Computes the policy's loss, summed over tokens. `log_probs` (N) and `entropy` (N) are those of the current
    /// weights.
    pub fn policy(&self, log_probs: &Tensor, entropy: Option<&Tensor>, before: &RolloutTensors) -> Loss {
        let n = before.count();
        let mut metrics = Metrics::default();
        let mut add = |name, each: &Tensor| metrics.add(name, &each.sum(Kind::Double), n);
        let change = log_probs - &before.log_probs;
        let ratio = change.exp();
        let plain = -(&before.advantages * &ratio);
        let surrogate = match self.clip {
            0.0 => plain,
            clip => {
                let clipped = -(&before.advantages * ratio.clamp(1.0 - clip, 1.0 + clip));
                add("policy/clipfrac_avg", &clipped.gt_tensor(&plain));
                plain.maximum(&clipped)
            }
        };
        add("loss/policy_avg", &surrogate);
        add("policy/approxkl_avg", &(change.square() * 0.5));
        add("val/ratio", &ratio);
        add("val/ratio_var", &(&ratio - 1.0).square());
        let mut sum = surrogate;
        if let Some(entropy) = entropy {
            add("policy/entropy_avg", entropy);
            if self.entropy != 0.0 {
                sum = &sum - entropy * self.entropy;
            }
        }
        if let (Some((estimator, coefficient)), Some(reference)) = (self.kl, &before.reference) {
            let term = estimator.loss_term(&(log_probs - reference), &ratio);
            add("loss/kl_avg", &term);
            sum = &sum + term * coefficient;
        }
        let sum = sum.sum(Kind::Double).to_kind(Kind::Float);
        metrics.add("loss", &sum, n);
        Loss { sum, metrics }
    }

    /// Computes the value function's loss, summed over tokens and weighted. `values` (N) are those of the current
    /// weights. Its part of the mean `loss` is added to the policy's, which already counts the tokens.
    pub fn value(&self, values: &Tensor, before: &RolloutTensors) -> Loss {
        let n = before.count();
        let mut metrics = Metrics::default();
        let plain = (values - &before.returns).square();
        let error = match self.clip_value {
            0.0 => plain,
            clip => {
                let near = values.maximum(&(&before.values - clip)).minimum(&(&before.values + clip));
                let clipped = (near - &before.returns).square();
                metrics.add("val/clipfrac_avg", &clipped.gt_tensor(&plain).sum(Kind::Double), n);
                plain.maximum(&clipped)
            }
        };
        let sum = error.sum(Kind::Double).to_kind(Kind::Float) * 0.5;
        metrics.add("loss/value_avg", &sum, n);
        let sum = sum * self.value;
        metrics.add("loss", &sum, 0.0);
        Loss { sum, metrics }
    }
}
