//! The alarms of PPO, found in the metrics of its iterations. A pure function of their history.
//!
//! Each alarm is given once per run. Alarms after which further steps would do harm end the run, unless the recipe
//! forbids it.

use super::spec::AlarmSpec;
use crate::error::Result;
use crate::methods::contract::Means;
use crate::methods::state::{self, StateTensors, damaged};
use crate::methods::watch::{AlarmRule, Problem, Repeat, RunRecord, Watch};

/// The metrics of an iteration, in the order in which checkpoints store them.
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

/// What the rules need of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct PpoHistory {
    spec: AlarmSpec,
    /// `method.ppo`, the section of the keys that alarms name.
    keys: &'static str,
    iterations: Vec<IterationMetrics>,
    /// `val/ratio_var` of the last step.
    ratio: Option<f64>,
    /// `sampling/sampling_logp_difference/mean` of the last step.
    drift: Option<f64>,
    /// True if the last step was the first one of an iteration.
    fresh: bool,
}

impl RunRecord for PpoHistory {
    fn record(&mut self, means: &Means) {
        self.ratio = means.get("val/ratio_var").copied();
        self.drift = means.get("sampling/sampling_logp_difference/mean").copied();
        let seen = IterationMetrics::of(means);
        self.fresh = seen.is_some();
        self.iterations.extend(seen);
    }
}

impl PpoHistory {
    /// Returns the metrics of the iteration that began with the last step; `None` if none did.
    fn new_iteration(&self) -> Option<&IterationMetrics> {
        self.iterations.last().filter(|_| self.fresh)
    }

    /// Formats `--set` for a key of the method.
    fn override_flag(&self, key: &str, value: impl std::fmt::Display) -> String {
        format!("--set {}.{key}={value}", self.keys)
    }

    fn negative_kl(&self) -> Option<Problem> {
        let now = self.new_iteration()?;
        let negative = now.kl < -(4.0 * now.kl_error + 0.05); // false for NaN
        if !negative {
            return None;
        }
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
        Some(Problem { cause, next })
    }

    fn kl_limit(&self) -> Option<Problem> {
        let now = self.new_iteration()?;
        let beyond = now.kl - 2.0 * now.kl_error > self.spec.kl; // false for NaN
        if !beyond {
            return None;
        }
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
        Some(Problem { cause, next })
    }

    fn ratio(&self) -> Option<Problem> {
        let spread = self.ratio?;
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
        Some(Problem { cause, next })
    }

    fn drift(&self) -> Option<Problem> {
        let drift = self.drift?;
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
        Some(Problem { cause, next })
    }

    /// Computes the means of a number over the first and over the last iterations; `None` while these overlap.
    fn first_and_last(&self, of: impl Fn(&IterationMetrics) -> f64) -> Option<(f64, f64)> {
        let n = self.iterations.len();
        if !self.fresh || n < 2 * WINDOW {
            return None;
        }
        let mean = |part: &[IterationMetrics]| part.iter().map(&of).sum::<f64>() / WINDOW as f64;
        Some((mean(&self.iterations[..WINDOW]), mean(&self.iterations[n - WINDOW..])))
    }

    fn entropy(&self) -> Option<Problem> {
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
        Some(Problem { cause, next })
    }

    fn length(&self) -> Option<Problem> {
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
        Some(Problem { cause, next })
    }

    fn ended(&self) -> Option<Problem> {
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
        Some(Problem { cause, next })
    }

    /// Detects reward hacking: the reward rises while the reward minus the divergence falls, compared with the window
    /// in which the latter was best. Both changes must exceed three standard errors.
    fn overoptimised(&self) -> Option<Problem> {
        let n = self.iterations.len();
        if !self.fresh || n < 2 * WINDOW {
            return None;
        }
        let window = |from: usize| &self.iterations[from..from + WINDOW];
        let moments = |from: usize, of: fn(&IterationMetrics) -> f64| {
            crate::stats::moments::mean_and_sample_variance(window(from).iter().map(of))
        };
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
        Some(Problem { cause, next })
    }
}

/// The alarms of PPO, in the order in which they are given.
const RULES: &[AlarmRule<PpoHistory>] = &[
    AlarmRule { name: "ratio", harmful: false, find: PpoHistory::ratio },
    AlarmRule { name: "drift", harmful: false, find: PpoHistory::drift },
    AlarmRule { name: "negative_kl", harmful: true, find: PpoHistory::negative_kl },
    AlarmRule { name: "kl_limit", harmful: true, find: PpoHistory::kl_limit },
    AlarmRule { name: "entropy", harmful: false, find: PpoHistory::entropy },
    AlarmRule { name: "length", harmful: false, find: PpoHistory::length },
    AlarmRule { name: "ended", harmful: false, find: PpoHistory::ended },
    AlarmRule { name: "overoptimised", harmful: true, find: PpoHistory::overoptimised },
];

/// Returns a watch that has seen no iteration; `keys` is the section of the keys that alarms name.
pub fn watch(spec: AlarmSpec, keys: &'static str) -> Watch<PpoHistory> {
    let stop = spec.stop;
    let history = PpoHistory { spec, keys, iterations: Vec::new(), ratio: None, drift: None, fresh: false };
    Watch::new(history, RULES, Repeat::Once, stop)
}

/// The name of the only tensor of a watch in a checkpoint: seven numbers per iteration, then one for each rule of
/// `REPORTED`, 1 if its alarm was given.
const STORED: &str = "alarms";
const REPORTED: [&str; 8] =
    ["negative_kl", "kl_limit", "ratio", "drift", "entropy", "length", "ended", "overoptimised"];

impl Watch<PpoHistory> {
    /// Adds what a resumed run needs to a checkpoint.
    pub fn save(&self, state: &mut StateTensors) {
        let reported = REPORTED.iter().map(|name| f64::from(u8::from(self.was_reported(name))));
        let numbers: Vec<f64> =
            self.record().iterations.iter().flat_map(IterationMetrics::numbers).chain(reported).collect();
        state::put(state, STORED, &numbers);
    }

    /// Restores what `save` added. An empty tensor is a run without iterations.
    pub fn load(&mut self, state: &StateTensors) -> Result<()> {
        let numbers = state::numbers(state, STORED)?;
        let (iterations, reported) = numbers.split_at(numbers.len().saturating_sub(REPORTED.len()));
        let (iterations, rest) = iterations.as_chunks::<7>();
        if !rest.is_empty() || ![0, REPORTED.len()].contains(&reported.len()) {
            return Err(damaged(format_args!("`{STORED}` has {} numbers, expected 8 + 7 n", numbers.len())));
        }
        self.record_mut().iterations = iterations.iter().map(|n| IterationMetrics::from(*n)).collect();
        for (i, name) in REPORTED.iter().enumerate() {
            self.set_reported(name, reported.get(i).is_some_and(|given| *given != 0.0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::contract::Alarm;
    use tch::Tensor;

    const CALM: IterationMetrics =
        IterationMetrics { kl: 1.0, kl_error: 0.2, score: 0.5, net: 0.45, entropy: 2.0, length: 40.0, cut: 0.1 };

    fn means(seen: IterationMetrics) -> Means {
        let numbers = NAMES.iter().zip(seen.numbers()).map(|(name, x)| (name.to_string(), x));
        numbers.chain([("val/ratio_var".to_string(), 0.01)]).collect()
    }

    /// Returns the alarms of a run whose iteration i has the metrics `at(i)`.
    fn run(iterations: usize, at: impl Fn(usize) -> IterationMetrics) -> Vec<Alarm> {
        let mut run = watch(AlarmSpec::default(), "method.ppo");
        (0..iterations).flat_map(|i| run.check(&means(at(i)))).collect()
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
        let mut run = watch(AlarmSpec { stop: false, ..Default::default() }, "method.ppo");
        one(run.check(&means(IterationMetrics { kl: 31.0, ..CALM })), "limit is 30", false);
        assert_eq!(run.check(&means(IterationMetrics { kl: 35.0, ..CALM })), [], "reported once");
    }

    #[test]
    fn a_large_ratio_is_reported_at_any_step() {
        let mut run = watch(AlarmSpec::default(), "method.ppo");
        let step = |spread: f64| Means::from([("val/ratio_var".to_string(), spread), ("loss".into(), 0.1)]);
        assert_eq!(run.check(&step(0.5)), []);
        one(run.check(&step(4.0)), "too large", false);
        let mut run = watch(AlarmSpec::default(), "method.ppo");
        one(run.check(&step(f64::INFINITY)), "too large", false);
    }

    #[test]
    fn a_drift_is_reported() {
        let mut run = watch(AlarmSpec::default(), "method.ppo");
        let step = |drift: f64| Means::from([("sampling/sampling_logp_difference/mean".to_string(), drift)]);
        assert_eq!(run.check(&step(0.02)), []);
        one(run.check(&step(0.3)), "disagree", false);
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
        let mut run = watch(AlarmSpec { stop: false, ..Default::default() }, "method.ppo");
        (0..7).for_each(|i| drop(run.check(&means(IterationMetrics { kl: 10.0 * i as f64, ..CALM }))));
        let mut other = watch(run.record().spec.clone(), "method.ppo");
        let mut saved = StateTensors::new();
        run.save(&mut saved);
        other.load(&saved).unwrap();
        assert_eq!(other.record().iterations, run.record().iterations);
        let reported = |w: &Watch<PpoHistory>| REPORTED.map(|name| w.was_reported(name));
        assert_eq!(reported(&other), reported(&run));
        assert!(other.was_reported("kl_limit") && !other.was_reported("ratio"));
        let mut empty = watch(AlarmSpec::default(), "method.ppo");
        empty.load(&StateTensors::from([("alarms".to_string(), Tensor::from_slice(&[0f64; 0]))])).unwrap();
        assert_eq!(empty.record(), watch(AlarmSpec::default(), "method.ppo").record());
        assert_eq!(reported(&empty), [false; 8]);
    }

    /// The tensor of a checkpoint of version 0.1 with one iteration, after the alarms `kl_limit` and `ratio`.
    #[test]
    fn the_stored_layout_is_fixed_and_another_length_is_damage() {
        let stored = [31.0, 0.2, 0.5, 0.45, 2.0, 40.0, 0.1, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let saved = |numbers: &[f64]| StateTensors::from([("alarms".to_string(), Tensor::from_slice(numbers))]);
        let mut run = watch(AlarmSpec::default(), "method.ppo");
        run.load(&saved(&stored)).unwrap();
        assert_eq!(run.record().iterations, [IterationMetrics { kl: 31.0, ..CALM }]);
        assert!(run.was_reported("kl_limit") && run.was_reported("ratio") && !run.was_reported("negative_kl"));
        let mut again = StateTensors::new();
        run.save(&mut again);
        assert_eq!(Vec::<f64>::try_from(&again["alarms"]).unwrap(), stored);
        for numbers in [&stored[..14], &stored[..7]] {
            let error = run.load(&saved(numbers)).unwrap_err();
            assert!(format!("{error:?}").contains("checkpoint is damaged"), "{error:?}");
        }
    }
}
