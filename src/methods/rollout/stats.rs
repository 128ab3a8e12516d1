//! Metrics of a rollout, with TRL's names and definitions (TRL 1.16, `GRPOTrainer`).

use super::answer::SampledAnswer;
use crate::stats::moments::{mean, sample_deviation};

/// Metrics by name, in the order in which they are logged.
pub type MetricList = Vec<(String, f64)>;

/// Computes `completions/…`: lengths in tokens including the stop token, for all answers and for those that ended, and
/// the share that was truncated.
pub fn completions(samples: &[SampledAnswer]) -> MetricList {
    let lengths = |ended: Option<bool>| -> Vec<f64> {
        let chosen = samples.iter().filter(|s| ended.is_none_or(|e| e == s.ended));
        chosen.map(|s| s.length() as f64).collect()
    };
    let spread = |name: &str, lengths: &[f64]| {
        let least = lengths.iter().copied().fold(f64::INFINITY, f64::min);
        let most = lengths.iter().copied().fold(0.0, f64::max);
        [
            (format!("completions/mean{name}"), mean(lengths)),
            (format!("completions/min{name}"), if lengths.is_empty() { 0.0 } else { least }),
            (format!("completions/max{name}"), most),
        ]
    };
    let cut = samples.iter().filter(|s| !s.ended).count() as f64 / samples.len().max(1) as f64;
    let mut found: MetricList = spread("_length", &lengths(None)).into();
    found.push(("completions/clipped_ratio".into(), cut));
    found.extend(spread("_terminated_length", &lengths(Some(true))));
    found
}

/// Computes `reward`, `reward_std`, and `rewards/NAME/mean` and `/std` of each source over the answers it gave a
/// reward to; a source that abstained from every answer has no metrics.
pub fn reward_metrics<'n>(samples: &[SampledAnswer], names: impl Iterator<Item = &'n str>) -> MetricList {
    let all: Vec<f64> = samples.iter().map(|s| s.reward).collect();
    let mut found = vec![("reward".to_string(), mean(&all)), ("reward_std".to_string(), sample_deviation(&all))];
    for (i, name) in names.enumerate() {
        let one: Vec<f64> = samples.iter().map(|s| s.rewards[i]).filter(|r| !r.is_nan()).collect();
        if one.is_empty() {
            continue;
        }
        found.push((format!("rewards/{name}/mean"), mean(&one)));
        found.push((format!("rewards/{name}/std"), sample_deviation(&one)));
    }
    found
}

/// Computes `sampling/…`: how far the log-probabilities computed by training differ from those computed while
/// sampling. `learnt` holds training's log-probabilities of each answer's tokens.
pub fn drift_metrics(samples: &[SampledAnswer], learnt: &[Vec<f32>]) -> MetricList {
    let gaps = || {
        let pairs = samples.iter().zip(learnt).flat_map(|(s, l)| s.log_probs.iter().zip(l));
        pairs.map(|(drew, learns)| f64::from(*learns) - f64::from(*drew))
    };
    let count = gaps().count().max(1) as f64;
    let (mut sum, mut most, mut least_ratio, mut most_ratio) = (0.0, 0.0f64, f64::INFINITY, 0.0f64);
    for gap in gaps() {
        sum += gap.abs();
        most = most.max(gap.abs());
        least_ratio = least_ratio.min(gap.exp());
        most_ratio = most_ratio.max(gap.exp());
    }
    vec![
        ("sampling/sampling_logp_difference/mean".into(), sum / count),
        ("sampling/sampling_logp_difference/max".into(), most),
        ("sampling/importance_sampling_ratio/min".into(), least_ratio.min(most_ratio)),
        ("sampling/importance_sampling_ratio/mean".into(), gaps().map(f64::exp).sum::<f64>() / count),
        ("sampling/importance_sampling_ratio/max".into(), most_ratio),
    ]
}
