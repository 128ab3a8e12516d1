//! How far the policy lies from the reference: estimators of the Kullback-Leibler divergence from sampled tokens, and
//! the coefficient that weighs it.
//!
//! With `d = ln p(x) - ln r(x)` of a token drawn from the policy p, r the reference (Schulman 2020, "Approximating KL
//! divergence", joschu.net/blog/kl-approx.html):
//! `k1 = d` (unbiased, may be negative), `k2 = d^2 / 2` (biased, never negative), `k3 = exp(-d) - 1 + d` (unbiased, never
//! negative). All in nats.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// An estimator of the divergence of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The log-ratio itself: unbiased, with the widest spread; a token may count negative.
    #[default]
    K1,
    /// Half its square: biased, small spread; the right gradient where it stands in the loss.
    K2,
    /// `exp(-d) - 1 + d`: unbiased, never negative.
    K3,
}

impl Estimator {
    /// The estimate from `d = ln p - ln r`.
    pub fn of(self, d: f64) -> f64 {
        match self {
            Self::K1 => d,
            Self::K2 => 0.5 * d * d,
            Self::K3 => (-d).exp_m1() + d,
        }
    }

    /// As a term of a loss: (N) from `log_ratio` = ln p - ln r, which carries the gradient. `ratio` is p over the policy
    /// that sampled, (N), with its gradient.
    ///
    /// The gradient of k1 alone has mean zero, so it is weighed by the ratio: then value and gradient are those of
    /// the divergence (importance sampling). k2 has that gradient where the policy is the one that sampled; k3 has
    /// that of the reversed divergence there, as in GRPO (arXiv 2402.03300, equation 4).
    pub fn term(self, log_ratio: &Tensor, ratio: &Tensor) -> Tensor {
        match self {
            Self::K1 => ratio * log_ratio,
            Self::K2 => log_ratio.square() * 0.5,
            Self::K3 => (-log_ratio).expm1() + log_ratio,
        }
    }
}

/// The weight of the divergence, which may follow a target.
///
/// Ziegler et al. 2019 (arXiv 1909.08593, section 2.2): `e = clip((KL - target) / target, -0.2, 0.2)`,
/// `coef <- coef * (1 + e * n / horizon)` after n answers; their K is `n / horizon`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficient {
    pub value: f64,
    adaptive: Option<(f64, f64)>,
}

impl Coefficient {
    pub fn fixed(value: f64) -> Self {
        Self { value, adaptive: None }
    }

    /// Follows `target` nats an answer.
    pub fn adaptive(value: f64, target: f64, horizon: f64) -> Self {
        Self { value, adaptive: Some((target, horizon)) }
    }

    /// After `answers` answers whose mean divergence was `kl`.
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
        let mean = |k: Estimator| p.iter().zip(r).map(|(p, r)| p * k.of((p / r).ln())).sum::<f64>();
        assert!((mean(Estimator::K1) - exact).abs() < 1e-15);
        assert!((mean(Estimator::K3) - exact).abs() < 1e-15);
        assert!(p.iter().zip(r).all(|(p, r)| Estimator::K3.of((p / r).ln()) >= 0.0));
        assert!((mean(Estimator::K2) - exact).abs() > 0.01);
        // Where both nearly agree, k3 keeps its digits.
        assert!((Estimator::K3.of(1e-9) / 5e-19 - 1.0).abs() < 1e-6);
    }

    /// The gradient of the weighed k1 is that of the divergence, whatever the policy that sampled; k2's is where it was
    /// the policy itself.
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
        let weighed = |k: Estimator, sampler: &Tensor| {
            let sampler = sampler.detach();
            gradient(&|p| {
                let ratio = (p - &sampler).exp();
                (sampler.exp() * k.term(&(p - &reference), &ratio)).sum(tch::Kind::Double)
            })
        };
        let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-12;
        assert!(near(&weighed(Estimator::K1, &sampler), &exact));
        let own = Tensor::from_slice(&[0.2f64, 1.0, -1.0, 0.5]).log_softmax(-1, tch::Kind::Double);
        assert!(near(&weighed(Estimator::K1, &own), &exact));
        assert!(near(&weighed(Estimator::K2, &own), &exact));
    }

    #[test]
    fn the_coefficient_follows_its_target() {
        let mut c = Coefficient::adaptive(0.1, 6.0, 10000.0);
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
        let mut fixed = Coefficient::fixed(0.05);
        fixed.update(100.0, 256);
        assert_eq!(fixed.value, 0.05);
    }
}
