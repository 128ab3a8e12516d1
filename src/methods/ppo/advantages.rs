//! Computes advantages and returns from rewards and values of tokens. Works on plain numbers of one answer or of all
//! answers, without tensors or models. Every token is a real one; there is no padding.

use super::spec::PpoSpec;
use crate::stats::moments::mean_and_sample_variance;

/// Advantages and returns of the tokens of all answers.
pub struct TokenEstimates {
    /// One number per token, for each answer.
    pub advantages: Vec<Vec<f64>>,
    /// The same of returns: what the value function should have predicted.
    pub returns: Vec<Vec<f64>>,
    /// How much of the returns' variance the values explain; `None` if all returns are equal.
    pub explained_variance: Option<f64>,
}

/// Computes advantages and returns of one score per answer, and one divergence and one value per token. `weight` is
/// that of the divergence in the rewards.
pub fn estimate(
    spec: &PpoSpec,
    scores: &[f64],
    divergence: &[Vec<f64>],
    weight: f64,
    values: &[Vec<f64>],
) -> TokenEstimates {
    let penalties = divergence.iter().map(|d| d.iter().map(|k| weight * k).collect::<Vec<_>>());
    let mut rewards: Vec<Vec<f64>> =
        penalties.zip(scores).map(|(penalties, score)| token_rewards(&penalties, *score)).collect();
    if spec.whiten_rewards {
        whiten(&mut rewards, false);
    }
    let mut advantages: Vec<Vec<f64>> =
        rewards.iter().zip(values).map(|(r, v)| gae(r, v, spec.gamma, spec.lambda)).collect();
    let add = |(a, v): (&Vec<f64>, &Vec<f64>)| a.iter().zip(v).map(|(a, v)| a + v).collect();
    let returns: Vec<Vec<f64>> = advantages.iter().zip(values).map(add).collect();
    let explained_variance = explained_variance(&values.concat(), &returns.concat());
    if spec.whiten_advantages {
        whiten(&mut advantages, true);
    }
    TokenEstimates { advantages, returns, explained_variance }
}

/// Computes the rewards of an answer's tokens: `-coef * KL` each, plus the answer's score at its last token (Ouyang et
/// al. 2022, arXiv 2203.02155, equation 2).
///
/// If an answer is shorter than the batch is wide, TRL puts the score one position later, on a step after the last
/// token; here the last token is always the last action.
pub fn token_rewards(penalties: &[f64], score: f64) -> Vec<f64> {
    let mut rewards: Vec<f64> = penalties.iter().map(|p| -p).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Computes generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16) of one
/// answer: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`, with V and A zero after the
/// last token. `values[t]` is V of the state in which token t is chosen.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
    assert_eq!(rewards.len(), values.len(), "one value a token");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        next = rewards[t] + gamma * next_value - values[t] + gamma * lambda * next;
        next_value = values[t];
        advantages[t] = next;
    }
    advantages
}

/// Scales all numbers of all answers to variance 1 and, with `shift`, to mean 0. As TRL's `masked_whiten`:
/// `(x - mean) / sqrt(var + 1e-8)`, then `+ mean` without `shift`.
pub fn whiten(answers: &mut [Vec<f64>], shift: bool) {
    let (mean, variance) = mean_and_sample_variance(answers.iter().flatten().copied());
    let scale = 1.0 / (variance + 1e-8).sqrt();
    for x in answers.iter_mut().flatten() {
        *x = (*x - mean) * scale + if shift { 0.0 } else { mean };
    }
}

/// Computes `1 - Var(returns - values) / Var(returns)`: 1 if the values predict every return, 0 if they predict no
/// more than the mean, negative if they are worse than the mean. `None` if all returns are equal.
pub fn explained_variance(values: &[f64], returns: &[f64]) -> Option<f64> {
    assert_eq!(values.len(), returns.len(), "one value a return");
    let (_, all) = mean_and_sample_variance(returns.iter().copied());
    let (_, left) = mean_and_sample_variance(returns.iter().zip(values).map(|(r, v)| r - v));
    (all > 1e-12).then(|| 1.0 - left / all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// Equation 16, with every sum written out.
    fn brute_force(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
        let n = rewards.len();
        let value = |t: usize| if t < n { values[t] } else { 0.0 };
        let delta = |t: usize| rewards[t] + gamma * value(t + 1) - value(t);
        (0..n).map(|t| (t..n).map(|k| (gamma * lambda).powi((k - t) as i32) * delta(k)).sum()).collect()
    }

    /// Equation 11 with lambda 1 and 0; in between the weighted mean of all k-step estimates (equation 16, upper
    /// line).
    fn from_steps(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Vec<f64> {
        let n = rewards.len();
        let value = |t: usize| if t < n { values[t] } else { 0.0 };
        let estimate = |t: usize, k: usize| {
            let seen: f64 = (0..k).map(|l| gamma.powi(l as i32) * if t + l < n { rewards[t + l] } else { 0.0 }).sum();
            seen + gamma.powi(k as i32) * value(t + k) - value(t)
        };
        // After the last token every estimate is the same; weights of more than a thousand steps are below the
        // precision of float64.
        (0..n)
            .map(|t| (1..1000).map(|k| (1.0 - lambda) * lambda.powi(k as i32 - 1) * estimate(t, k)).sum::<f64>())
            .collect()
    }

    #[test]
    fn gae_equals_its_definition() {
        let mut rng = crate::rng::stream(1, "tests: gae", 0);
        for n in [1, 2, 5, 17] {
            let rewards: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
            let values: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
            for (gamma, lambda) in [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (1.0, 0.5)] {
                let ours = gae(&rewards, &values, gamma, lambda);
                for other in
                    [brute_force(&rewards, &values, gamma, lambda), from_steps(&rewards, &values, gamma, lambda)]
                {
                    let far = ours.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(far < 1e-12, "{n} tokens, gamma {gamma}, lambda {lambda}: {far:e}");
                }
            }
            // lambda 1: the actual return minus the predicted one.
            for (t, a) in gae(&rewards, &values, 1.0, 1.0).iter().enumerate() {
                assert!((a - (rewards[t..].iter().sum::<f64>() - values[t])).abs() < 1e-12);
            }
        }
        assert!(gae(&[], &[], 1.0, 0.95).is_empty());
    }

    #[test]
    fn the_score_is_added_to_the_last_token() {
        assert_eq!(token_rewards(&[0.1, 0.2, 0.3], 2.0), [-0.1, -0.2, 1.7]);
        assert_eq!(token_rewards(&[], 2.0), [0.0f64; 0]);
    }

    #[test]
    fn whitening_counts_every_token_once() {
        let mut answers = vec![vec![1.0, 2.0, 3.0], vec![10.0], vec![]];
        whiten(&mut answers, true);
        let (mean, variance) = mean_and_sample_variance(answers.iter().flatten().copied());
        assert!(mean.abs() < 1e-15 && (variance - 1.0).abs() < 1e-8);
        let mut kept = vec![vec![1.0, 2.0, 3.0], vec![10.0]];
        whiten(&mut kept, false);
        let (mean, variance) = mean_and_sample_variance(kept.iter().flatten().copied());
        assert!((mean - 4.0).abs() < 1e-12 && (variance - 1.0).abs() < 1e-8);
        // One number, or equal ones, have no spread to divide by.
        let mut same = vec![vec![3.0, 3.0]];
        whiten(&mut same, true);
        assert_eq!(same, [[0.0, 0.0]]);
    }

    #[test]
    fn explained_variance_knows_its_ends() {
        let returns = [1.0, 2.0, 4.0, -1.0];
        assert_eq!(explained_variance(&returns, &returns), Some(1.0));
        assert!(explained_variance(&[1.5; 4], &returns).unwrap().abs() < 1e-15);
        let shifted: Vec<f64> = returns.iter().map(|r| r + 3.0).collect();
        assert_eq!(explained_variance(&shifted, &returns), Some(1.0)); // a constant error explains all the same
        assert!(explained_variance(&[-1.0, -2.0, -4.0, 1.0], &returns).unwrap() < -2.0);
        assert_eq!(explained_variance(&[1.0, 2.0], &[5.0, 5.0]), None);
    }
}
