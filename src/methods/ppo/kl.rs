//! The KL divergence of the policy from the reference: estimators from sampled tokens, and the coefficient that
//! weights it.
//!
//! With `d = ln p(x) - ln r(x)` for a token sampled from the policy p, and r the reference (Schulman 2020,
//! "Approximating KL divergence", joschu.net/blog/kl-approx.html), in nats:
//! - `k1 = d`: unbiased, may be negative.
//! - `k2 = d^2 / 2`: biased, never negative.
//! - `k3 = exp(-d) - 1 + d`: unbiased, never negative.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// An estimator of the divergence of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// The log-ratio itself: unbiased, with the largest variance; may be negative for a token.
    #[default]
    K1,
    /// Half the square of the log-ratio: biased, small variance; has the right gradient as a term of the loss.
    K2,
    /// `exp(-d) - 1 + d`: unbiased, never negative.
    K3,
}

impl KlEstimator {
    /// Estimates the divergence from `d = ln p - ln r`.
    pub fn estimate(self, d: f64) -> f64 {
        match self {
            Self::K1 => d,
            Self::K2 => 0.5 * d * d,
            Self::K3 => (-d).exp_m1() + d,
        }
    }

    /// Computes the estimate as a term of the loss: (N), from `log_ratio` = ln p - ln r with its gradient. `ratio` (N)
    /// is p divided by the probability under the policy that sampled, with its gradient.
    ///
    /// The expected gradient of k1 alone is zero, so k1 is multiplied by the ratio: then value and gradient are those
    /// of the divergence (importance sampling). k2 has that gradient if the policy is the one that sampled; k3 then
    /// has the gradient of the reversed divergence, as in GRPO (arXiv 2402.03300, equation 4).
    pub fn loss_term(self, log_ratio: &Tensor, ratio: &Tensor) -> Tensor {
        match self {
            Self::K1 => ratio * log_ratio,
            Self::K2 => log_ratio.square() * 0.5,
            Self::K3 => (-log_ratio).expm1() + log_ratio,
        }
    }
}

/// The weight of the KL divergence, which may be adjusted to reach a target.
///
/// Ziegler et al. 2019 (arXiv 1909.08593, section 2.2): `e = clip((KL - target) / target, -0.2, 0.2)`,
/// `coef <- coef * (1 + e * n / horizon)` after n answers; their K is `n / horizon`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlCoefficient {
    /// The current weight.
    pub value: f64,
    adaptive: Option<(f64, f64)>,
}

impl KlCoefficient {
    /// Creates a constant coefficient.
    pub fn fixed(value: f64) -> Self {
        Self { value, adaptive: None }
    }

    /// Creates a coefficient that is adjusted so that the divergence reaches `target` nats per answer.
    pub fn adaptive(value: f64, target: f64, horizon: f64) -> Self {
        Self { value, adaptive: Some((target, horizon)) }
    }

    /// Adjusts the coefficient after `answers` answers whose mean divergence was `kl`.
    pub fn update(&mut self, kl: f64, answers: usize) {
        if let Some((target, horizon)) = self.adaptive {
            let error = ((kl - target) / target).clamp(-0.2, 0.2);
            self.value *= 1.0 + error * answers as f64 / horizon;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all tokens of a distribution, k1 and k3 add up to the divergence, and no k3 is negative.
    #[test]
    fn k1_and_k3_are_unbiased() {
        let (p, r) = ([0.5f64, 0.2, 0.2, 0.1], [0.1f64, 0.4, 0.3, 0.2]);
        let exact: f64 = p.iter().zip(r).map(|(p, r)| p * (p / r).ln()).sum();
        let mean = |k: KlEstimator| p.iter().zip(r).map(|(p, r)| p * k.estimate((p / r).ln())).sum::<f64>();
        assert!((mean(KlEstimator::K1) - exact).abs() < 1e-15);
        assert!((mean(KlEstimator::K3) - exact).abs() < 1e-15);
        assert!(p.iter().zip(r).all(|(p, r)| KlEstimator::K3.estimate((p / r).ln()) >= 0.0));
        assert!((mean(KlEstimator::K2) - exact).abs() > 0.01);
        // If p and r are nearly equal, k3 keeps its precision.
        assert!((KlEstimator::K3.estimate(1e-9) / 5e-19 - 1.0).abs() < 1e-6);
    }

    /// k1 multiplied by the ratio has the gradient of the divergence, whichever policy sampled; k2 has it if the
    /// policy itself sampled.
    #[test]
    fn a_term_of_the_loss_has_the_gradient_of_the_divergence() {
        let reference = Tensor::from_slice(&[0.3f64, -0.8, 0.1, 0.9]).log_softmax(-1, tch::Kind::Double);
        let sampler = Tensor::from_slice(&[-0.4f64, 0.6, 0.2, 0.0]).log_softmax(-1, tch::Kind::Double);
        let gradient = |f: &dyn Fn(&Tensor) -> Tensor| {
            let logits = Tensor::from_slice(&[0.2f64, 1.0, -1.0, 0.5]).set_requires_grad(true);
            f(&logits.log_softmax(-1, tch::Kind::Double)).backward();
            logits.grad()
        };
        let exact = gradient(&|p| (p.exp() * (p - &reference)).sum(tch::Kind::Double));
        let weighed = |k: KlEstimator, sampler: &Tensor| {
            let sampler = sampler.detach();
            gradient(&|p| {
                let ratio = (p - &sampler).exp();
                (sampler.exp() * k.loss_term(&(p - &reference), &ratio)).sum(tch::Kind::Double)
            })
        };
        let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-12;
        assert!(near(&weighed(KlEstimator::K1, &sampler), &exact));
        let own = Tensor::from_slice(&[0.2f64, 1.0, -1.0, 0.5]).log_softmax(-1, tch::Kind::Double);
        assert!(near(&weighed(KlEstimator::K1, &own), &exact));
        assert!(near(&weighed(KlEstimator::K2, &own), &exact));
    }

    #[test]
    fn the_coefficient_follows_its_target() {
        let mut c = KlCoefficient::adaptive(0.1, 6.0, 10000.0);
        c.update(6.0, 256);
        assert_eq!(c.value, 0.1);
        c.update(6.6, 256); // a tenth too far
        assert!((c.value - 0.1 * (1.0 + 0.1 * 0.0256)).abs() < 1e-15);
        let before = c.value;
        c.update(600.0, 256); // no more than a fifth counts
        assert!((c.value - before * (1.0 + 0.2 * 0.0256)).abs() < 1e-15);
        let before = c.value;
        c.update(-3.0, 256);
        assert!((c.value - before * (1.0 - 0.2 * 0.0256)).abs() < 1e-15);
        let mut fixed = KlCoefficient::fixed(0.05);
        fixed.update(100.0, 256);
        assert_eq!(fixed.value, 0.05);
    }
}
