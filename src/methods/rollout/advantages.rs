//! What advantages are computed from, and what a method's advantages are. The formulas are each method's own: group
//! means in `grpo::advantages`, leave-one-out in `rloo::advantages`, generalised estimates per token in
//! `ppo::advantages`.

use crate::stats::moments::sample_deviation;

/// Advantages of sampled answers.
pub struct Advantages {
    /// One number per answer.
    pub values: Vec<f64>,
    /// The share of answers whose group (or batch) has equal rewards throughout.
    pub uniform_share: f64,
    /// Further metrics to log.
    pub more: Vec<(String, f64)>,
}

/// The numbers that advantages are computed from. The answers to one prompt are consecutive.
pub struct RolloutRewards<'a> {
    /// One reward per answer.
    pub rewards: &'a [f64],
    /// Number of answers to each prompt.
    pub answers_per_prompt: usize,
    /// Number of tokens of each answer.
    pub lengths: &'a [f64],
    /// The sum of `old - reference` over each answer's tokens, if a reference model is used.
    pub kl: Option<&'a [f64]>,
}

/// A standard deviation below this counts as zero.
const NO_DEVIATION: f64 = 1e-8;

/// Returns true if a standard deviation is zero up to rounding.
pub fn is_uniform(deviation: f64) -> bool {
    deviation < NO_DEVIATION
}

/// Returns true if rewards are equal up to rounding, so that they do not say which answer is better.
pub fn are_uniform(rewards: &[f64]) -> bool {
    is_uniform(sample_deviation(rewards))
}
