//! The metrics of an iteration, under TRL's names.

use super::answers::AnswerTokenStats;
use super::kl::KlEstimator;
use crate::methods::rollout::answer::SampledAnswer;
use crate::methods::rollout::stats::MetricList;
use crate::stats::moments::mean_and_sample_variance;

/// Estimates the KL divergence from the reference of each token of each answer.
pub fn divergence(numbers: &[AnswerTokenStats], estimator: KlEstimator) -> Vec<Vec<f64>> {
    numbers.iter().map(|n| n.log_ratios().into_iter().map(|d| estimator.estimate(d)).collect()).collect()
}

/// Computes TRL's `objective/…` metrics over real tokens, and the number of answers that ended. `coefficient` is the
/// weight of the divergence.
pub fn objective_metrics(
    samples: &[SampledAnswer],
    numbers: &[AnswerTokenStats],
    estimator: KlEstimator,
    coefficient: f64,
) -> MetricList {
    let sum = |x: &[f64]| x.iter().sum::<f64>();
    let kl: Vec<f64> = divergence(numbers, estimator).iter().map(|d| sum(d)).collect();
    let surprise: Vec<f64> = numbers.iter().map(|n| -n.log_probs.iter().map(|x| f64::from(*x)).sum::<f64>()).collect();
    let tokens: f64 = samples.iter().map(|s| s.length() as f64).sum();
    let (kl_mean, kl_variance) = mean_and_sample_variance(kl.iter().copied());
    let score = samples.iter().map(|s| s.reward).sum::<f64>() / samples.len() as f64;
    vec![
        ("objective/kl".to_string(), kl_mean),
        ("objective/kl_error".into(), (kl_variance / kl.len() as f64).sqrt()),
        ("objective/kl_coef".into(), coefficient),
        ("objective/entropy".into(), crate::stats::moments::mean(&surprise)),
        ("objective/token_entropy".into(), sum(&surprise) / tokens),
        ("objective/non_score_reward".into(), -coefficient * kl_mean),
        ("objective/rlhf_reward".into(), score - coefficient * kl_mean),
        ("objective/scores".into(), score),
        ("val/num_eos_tokens".into(), samples.iter().filter(|s| s.ended).count() as f64),
    ]
}
