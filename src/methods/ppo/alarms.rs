//! Alarms for PPO: problems found in the metrics of its iterations. A pure function of their history.
//!
//! Each alarm is given once per run. Alarms after which further steps would do harm end the run, unless the recipe
//! forbids it.

use crate::methods::{Alarm, Means};
use crate::stats::moments::mean_and_sample_variance;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits beyond which an alarm is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlarmSpec {
    /// End the run and keep its best checkpoint if the divergence is negative or above its limit, or if the reward
    /// rises while the reward minus the divergence falls. If false, these are only reported, like the other alarms.
    pub stop: bool,
    /// Largest KL divergence from the reference in nats per answer, averaged over an iteration.
    #[schemars(range(min = 0.0))]
    pub kl: f64,
    /// Largest deviation from 1 of the ratio of new to old probability: the mean of `(ratio - 1)^2` over a step's
    /// tokens.
    #[schemars(range(min = 0.0))]
    pub ratio: f64,
    /// Largest difference between the log-probabilities of rollouts and of training before the first update of an
    /// iteration, averaged over its tokens.
    #[schemars(range(min = 0.0))]
    pub drift: f64,
    /// Smallest share of its initial entropy that the policy must keep.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub entropy: f64,
    /// How many times longer or shorter than at the beginning answers may become.
    #[schemars(range(min = 1.0))]
    pub length: f64,
    /// How far the share of answers that end by themselves may fall.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ended: f64,
}

impl Default for AlarmSpec {
    fn default() -> Self {
        Self { stop: true, kl: 30.0, ratio: 1.0, drift: 0.1, entropy: 0.1, length: 2.0, ended: 0.25 }
    }
}

/// The metrics of an iteration, in the order of `PpoMonitor::numbers`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct IterationMetrics {
    kl: f64,
    /// Standard error of `kl`.
    kl_error: f64,
    score: f64,
    /// Score minus the weighted divergence.
    net: f64,
    /// Nats per token.
    entropy: f64,
    length: f64,
    /// Share of truncated answers.
    cut: f64,
}

const NAMES: [&str; 7] = [
    "objective/kl",
    "objective/kl_error",
    "objective/scores",
    "objective/rlhf_reward",
    "objective/token_entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
];

impl IterationMetrics {
    fn from(numbers: [f64; 7]) -> Self {
        let [kl, kl_error, score, net, entropy, length, cut] = numbers;
        Self { kl, kl_error, score, net, entropy, length, cut }
    }

    fn numbers(&self) -> [f64; 7] {
        [self.kl, self.kl_error, self.score, self.net, self.entropy, self.length, self.cut]
    }

    /// Reads the metrics of an iteration; `None` for a step other than its first, which has none of them.
    fn of(means: &Means) -> Option<Self> {
        let mut numbers = [0.0; 7];
        for (number, name) in numbers.iter_mut().zip(NAMES) {
            *number = *means.get(name)?;
        }
        Some(Self::from(numbers))
    }
}

/// Number of first and of last iterations whose means are compared.
const WINDOW: usize = 5;

/// The kinds of alarm; the number is the index in `PpoMonitor::told`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PpoAlarm {
    NegativeKl,
    KlLimit,
    Ratio,
    Drift,
    Entropy,
    Length,
    Ended,
    Overoptimised,
}

const KINDS: usize = 8;

/// Checks the metrics of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct PpoMonitor {
    spec: AlarmSpec,
    /// `method.ppo`, the section of the keys that alarms name.
    keys: &'static str,
    history: Vec<IterationMetrics>,
    told: [bool; KINDS],
}

impl PpoMonitor {
    pub fn new(spec: AlarmSpec, keys: &'static str) -> Self {
        Self { spec, keys, history: Vec::new(), told: [false; KINDS] }
    }

    /// Returns the problems that the means of a step show and that were not reported before.
    pub fn check(&mut self, means: &Means) -> Vec<Alarm> {
        let mut found: Vec<(PpoAlarm, String, String)> =
            [self.ratio(means), self.drift(means)].into_iter().flatten().collect();
        if let Some(seen) = IterationMetrics::of(means) {
            self.history.push(seen);
            found.extend(
                [self.divergence(), self.entropy(), self.length(), self.ended(), self.overoptimised()]
                    .into_iter()
                    .flatten(),
            );
        }
        found.retain(|(kind, ..)| !std::mem::replace(&mut self.told[*kind as usize], true));
        let harmful = |kind| matches!(kind, PpoAlarm::NegativeKl | PpoAlarm::KlLimit | PpoAlarm::Overoptimised);
        found
            .into_iter()
            .map(|(kind, cause, next)| Alarm { cause, next, stop: self.spec.stop && harmful(kind) })
            .collect()
    }

    /// Formats `--set` for a key of the method.
    fn override_flag(&self, key: &str, value: impl std::fmt::Display) -> String {
        format!("--set {}.{key}={value}", self.keys)
    }

    fn divergence(&self) -> Option<(PpoAlarm, String, String)> {
        let now = self.history.last()?;
        if now.kl < -(4.0 * now.kl_error + 0.05) {
            let cause = format!(
                "the divergence from the reference is {:.3} ± {:.3} nats per answer, but a KL divergence is never \
                 negative: answers are sampled from another distribution than the one that is trained",
                now.kl, now.kl_error
            );
            let next = format!(
                "look at sampling/sampling_logp_difference/mean in metrics.jsonl: above {}, rollouts and training \
                 disagree (ft selftest --model DIR compares both); near 0, there are too few answers: {} uses an \
                 estimate that is never negative",
                self.spec.drift,
                self.override_flag("kl.estimator", "k3")
            );
            return Some((PpoAlarm::NegativeKl, cause, next));
        }
        if now.kl - 2.0 * now.kl_error > self.spec.kl {
            let cause = format!(
                "the KL divergence from the reference is {:.1} nats per answer, the limit is {} ({}.alarms.kl): so far \
                 away, rewards say little about what people would prefer",
                now.kl, self.spec.kl, self.keys
            );
            let next = format!(
                "keep the policy nearer: {} or lower optim.lr; or adjust the coefficient to a target: {}",
                self.override_flag("kl.coef", "0.2"),
                self.override_flag("kl.target", format!("{:.0}", (self.spec.kl / 3.0).max(1.0)))
            );
            return Some((PpoAlarm::KlLimit, cause, next));
        }
        None
    }

    fn ratio(&self, means: &Means) -> Option<(PpoAlarm, String, String)> {
        let spread = *means.get("val/ratio_var")?;
        if spread <= self.spec.ratio && spread.is_finite() {
            return None;
        }
        let cause = format!(
            "the ratio of new to old probability is far from 1 (mean of (ratio - 1)^2 {spread:.3}, the limit is {}): \
             the optimiser steps are too large for answers that were sampled before them",
            self.spec.ratio
        );
        let next =
            format!("lower optim.lr, or make fewer passes over an iteration: {}", self.override_flag("epochs", 1));
        Some((PpoAlarm::Ratio, cause, next))
    }

    fn drift(&self, means: &Means) -> Option<(PpoAlarm, String, String)> {
        let drift = *means.get("sampling/sampling_logp_difference/mean")?;
        if drift <= self.spec.drift {
            return None;
        }
        let cause = format!(
            "rollouts and training disagree: the log-probability of a sampled token differs by {drift:.3} nats on \
             average before any update (limit {})",
            self.spec.drift
        );
        let next =
            "ft selftest --model DIR compares decoding with a KV cache and the packed pass; model.dtype: f32 removes \
                    rounding errors"
                .into();
        Some((PpoAlarm::Drift, cause, next))
    }

    /// Computes the means of a number over the first and over the last iterations; `None` while these overlap.
    fn first_and_last(&self, of: impl Fn(&IterationMetrics) -> f64) -> Option<(f64, f64)> {
        let n = self.history.len();
        if n < 2 * WINDOW {
            return None;
        }
        let mean = |part: &[IterationMetrics]| part.iter().map(&of).sum::<f64>() / WINDOW as f64;
        Some((mean(&self.history[..WINDOW]), mean(&self.history[n - WINDOW..])))
    }

    fn entropy(&self) -> Option<(PpoAlarm, String, String)> {
        let (first, now) = self.first_and_last(|s| s.entropy)?;
        if now >= self.spec.entropy * first {
            return None;
        }
        let cause = format!(
            "the policy hardly varies any more: its entropy fell from {first:.3} to {now:.3} nats per token, so \
             rollouts contain nothing new. For a task with a single right answer this is expected"
        );
        let next = format!(
            "{}, a higher sampling.temperature or a lower optim.lr keep answers varied",
            self.override_flag("entropy_coef", 0.01)
        );
        Some((PpoAlarm::Entropy, cause, next))
    }

    fn length(&self) -> Option<(PpoAlarm, String, String)> {
        let (first, now) = self.first_and_last(|s| s.length)?;
        let times = (now / first).max(first / now);
        if times <= self.spec.length || (now - first).abs() < 8.0 {
            return None;
        }
        let cause = format!(
            "the mean length of answers went from {first:.0} to {now:.0} tokens: the reward may favour length, \
             whatever they say"
        );
        let next =
            "read samples.jsonl; a reward model's report card shows how far it follows length; a `length` reward \
                    with a negative weight counteracts it"
                .into();
        Some((PpoAlarm::Length, cause, next))
    }

    fn ended(&self) -> Option<(PpoAlarm, String, String)> {
        let (first, now) = self.first_and_last(|s| 1.0 - s.cut)?;
        if first - now <= self.spec.ended {
            return None;
        }
        let cause = format!(
            "fewer answers end by themselves: {:.0} % at first, {:.0} % now; the others are truncated",
            100.0 * first,
            100.0 * now
        );
        let next = format!(
            "{} subtracts that from the reward of a truncated answer",
            self.override_flag("sampling.missing_eos_penalty", 1)
        );
        Some((PpoAlarm::Ended, cause, next))
    }

    /// Detects reward hacking: the reward rises while the reward minus the divergence falls, compared with the window
    /// in which the latter was best. Both changes must exceed three standard errors.
    fn overoptimised(&self) -> Option<(PpoAlarm, String, String)> {
        let n = self.history.len();
        if n < 2 * WINDOW {
            return None;
        }
        let window = |from: usize| &self.history[from..from + WINDOW];
        let moments =
            |from: usize, of: fn(&IterationMetrics) -> f64| mean_and_sample_variance(window(from).iter().map(of));
        let net: fn(&IterationMetrics) -> f64 = |s| s.net;
        let score: fn(&IterationMetrics) -> f64 = |s| s.score;
        let best = (0..=n - 2 * WINDOW).max_by(|a, b| moments(*a, net).0.total_cmp(&moments(*b, net).0))?;
        let change = |of: fn(&IterationMetrics) -> f64| {
            let ((then, spread_then), (now, spread_now)) = (moments(best, of), moments(n - WINDOW, of));
            let error = ((spread_then + spread_now) / WINDOW as f64).sqrt();
            (then, now, (now - then) / error.max(1e-9))
        };
        let ((s0, s1, rise), (n0, n1, fall)) = (change(score), change(net));
        if rise < 3.0 || fall > -3.0 {
            return None;
        }
        let cause = format!(
            "the reward rose from {s0:.3} to {s1:.3} while the reward minus the divergence fell from {n0:.3} to \
             {n1:.3}: the policy gains less reward than it pays in divergence, the sign of reward hacking"
        );
        let next = format!(
            "keep the policy nearer to the reference ({}), or stop here and read the samples",
            self.override_flag("kl.coef", 0.2)
        );
        Some((PpoAlarm::Overoptimised, cause, next))
    }

    /// Returns everything a checkpoint must store: seven numbers per iteration, then one for each kind of alarm.
    pub fn numbers(&self) -> Vec<f64> {
        let told = self.told.iter().map(|t| f64::from(u8::from(*t)));
        self.history.iter().flat_map(IterationMetrics::numbers).chain(told).collect()
    }

    /// Restores what `numbers` returned.
    pub fn restore(&mut self, numbers: &[f64]) {
        let (history, told) = numbers.split_at(numbers.len().saturating_sub(KINDS));
        self.history = history.as_chunks::<7>().0.iter().map(|n| IterationMetrics::from(*n)).collect();
        self.told = std::array::from_fn(|i| told.get(i).is_some_and(|t| *t != 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: IterationMetrics =
        IterationMetrics { kl: 1.0, kl_error: 0.2, score: 0.5, net: 0.45, entropy: 2.0, length: 40.0, cut: 0.1 };

    fn means(seen: IterationMetrics) -> Means {
        let numbers = NAMES.iter().zip(seen.numbers()).map(|(name, x)| (name.to_string(), x));
        numbers.chain([("val/ratio_var".to_string(), 0.01)]).collect()
    }

    /// Returns the alarms of a run whose iteration i has the metrics `at(i)`.
    fn run(iterations: usize, at: impl Fn(usize) -> IterationMetrics) -> Vec<Alarm> {
        let mut watch = PpoMonitor::new(AlarmSpec::default(), "method.ppo");
        (0..iterations).flat_map(|i| watch.check(&means(at(i)))).collect()
    }

    #[track_caller]
    fn one(alarms: Vec<Alarm>, says: &str, stop: bool) {
        assert!(alarms.len() == 1 && alarms[0].cause.contains(says) && alarms[0].stop == stop, "{alarms:#?}");
    }

    /// Small noise that is the same every time.
    fn wobble(i: usize) -> f64 {
        [0.3, -0.2, 0.1, -0.4, 0.2, 0.0, -0.1][i % 7]
    }

    #[test]
    fn a_normal_run_has_no_alarm() {
        assert_eq!(
            run(50, |i| IterationMetrics { score: 0.5 + 0.02 * i as f64, net: 0.45 + 0.02 * i as f64, ..CALM }),
            []
        );
        let noisy = |i| IterationMetrics { kl: 0.1 * wobble(i), score: wobble(i), net: wobble(i) - 0.1, ..CALM };
        assert_eq!(run(50, noisy), []);
    }

    #[test]
    fn a_negative_divergence_beyond_noise_stops() {
        assert_eq!(run(3, |_| IterationMetrics { kl: -0.5, ..CALM }), []);
        one(run(3, |_| IterationMetrics { kl: -1.0, ..CALM }), "never negative", true);
        one(run(3, |_| IterationMetrics { kl: -0.1, kl_error: 0.001, ..CALM }), "never negative", true);
    }

    #[test]
    fn a_divergence_over_its_limit_stops() {
        one(run(9, |i| IterationMetrics { kl: 5.0 * i as f64, ..CALM }), "limit is 30", true);
        let mut watch = PpoMonitor::new(AlarmSpec { stop: false, ..Default::default() }, "method.ppo");
        one(watch.check(&means(IterationMetrics { kl: 31.0, ..CALM })), "limit is 30", false);
        assert_eq!(watch.check(&means(IterationMetrics { kl: 35.0, ..CALM })), [], "reported once");
    }

    #[test]
    fn a_large_ratio_is_reported_at_any_step() {
        let mut watch = PpoMonitor::new(AlarmSpec::default(), "method.ppo");
        let step = |spread: f64| Means::from([("val/ratio_var".to_string(), spread), ("loss".into(), 0.1)]);
        assert_eq!(watch.check(&step(0.5)), []);
        one(watch.check(&step(4.0)), "too large", false);
        let mut watch = PpoMonitor::new(AlarmSpec::default(), "method.ppo");
        one(watch.check(&step(f64::INFINITY)), "too large", false);
    }

    #[test]
    fn a_drift_is_reported() {
        let mut watch = PpoMonitor::new(AlarmSpec::default(), "method.ppo");
        let step = |drift: f64| Means::from([("sampling/sampling_logp_difference/mean".to_string(), drift)]);
        assert_eq!(watch.check(&step(0.02)), []);
        one(watch.check(&step(0.3)), "disagree", false);
    }

    #[test]
    fn entropy_length_and_ends_are_compared_with_the_first_iterations() {
        let share = |i: usize| 1.0 - i as f64 / 30.0;
        one(run(30, |i| IterationMetrics { entropy: 2.0 * share(i).powi(2), ..CALM }), "hardly varies", false);
        one(run(30, |i| IterationMetrics { length: 40.0 / (1.0 - 0.02 * i as f64), ..CALM }), "favour length", false);
        one(run(30, |i| IterationMetrics { length: 40.0 * share(i), ..CALM }), "favour length", false);
        assert_eq!(
            run(30, |i| IterationMetrics { length: 3.0 + 0.1 * i as f64, ..CALM }),
            [],
            "two or three tokens more"
        );
        one(run(30, |i| IterationMetrics { cut: 1.0 - 0.9 * share(i), ..CALM }), "truncated", false);
    }

    #[test]
    fn reward_up_and_net_reward_down_stops() {
        // Both rise at first; then the divergence grows faster than the score.
        let gamed = |i: usize| {
            let (x, noise) = (i as f64, 0.05 * wobble(i));
            let kl = if i < 10 { 0.2 * x } else { 2.0 + 1.5 * (x - 10.0) };
            IterationMetrics { kl, score: 0.1 * x + noise, net: 0.1 * x - 0.1 * kl + noise, ..CALM }
        };
        one(run(26, gamed), "reward hacking", true);
        // If both fall together, it is no reward hacking.
        assert_eq!(run(26, |i| IterationMetrics { score: -0.1 * i as f64, net: -0.2 * i as f64, ..CALM }), []);
    }

    #[test]
    fn a_restored_history_continues() {
        let mut watch = PpoMonitor::new(AlarmSpec { stop: false, ..Default::default() }, "method.ppo");
        (0..7).for_each(|i| drop(watch.check(&means(IterationMetrics { kl: 10.0 * i as f64, ..CALM }))));
        let mut other = PpoMonitor::new(watch.spec.clone(), "method.ppo");
        other.restore(&watch.numbers());
        assert_eq!(other, watch);
        let mut empty = PpoMonitor::new(AlarmSpec::default(), "method.ppo");
        empty.restore(&[]);
        assert_eq!(empty, PpoMonitor::new(AlarmSpec::default(), "method.ppo"));
    }
}
