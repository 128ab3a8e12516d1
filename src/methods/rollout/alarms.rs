//! Alarms for GRPO and RLOO, found in the metrics of rollouts: each names the problem, its likely cause and what to
//! try next.

use super::sample_state::StateTensors;
use super::spec::LimitSpec;
use crate::error::Result;
use crate::methods::{Alarm, Means};
use tch::Tensor;

/// Number of rollouts whose mean describes the beginning of the run.
const FIRST: usize = 3;
/// Number of consecutive rollouts with uniform rewards before an alarm is given.
const FLAT: f64 = 8.0;
/// Below this share of the entropy at the beginning, the entropy has collapsed.
const COLLAPSE: f64 = 0.1;
/// Factor by which answers may become longer or shorter.
const LONGER: f64 = 2.5;
/// Increase that the share of truncated answers may have.
const CUT: f64 = 0.3;
/// Above this share of clipped ratios, the optimiser steps are too large.
const CLIPPED: f64 = 0.5;

/// Checks the metrics of each rollout.
#[derive(Debug, Clone)]
pub struct RolloutMonitor {
    limits: LimitSpec,
    /// Sums over the first rollouts: entropy, length, share of truncated answers.
    first: [f64; 3],
    /// Number of rollouts in these sums.
    seen: f64,
    /// Number of consecutive rollouts with uniform rewards.
    flat: f64,
}

impl RolloutMonitor {
    pub fn new(limits: LimitSpec) -> Self {
        Self { limits, first: [0.0; 3], seen: 0.0, flat: 0.0 }
    }

    /// Returns the problems that the means of a step show. Most are checked only on a step with a new rollout.
    pub fn check(&mut self, means: &Means) -> Vec<Alarm> {
        let get = |name: &str| means.get(name).copied();
        let mut found = Vec::new();
        let mut say = |cause: &str, next: &str, stop: bool| {
            found.push(Alarm { cause: cause.into(), next: next.into(), stop });
        };
        if let (Some(kl), Some(limit)) = (get("objective/kl"), self.limits.kl)
            && kl > limit
        {
            let next = "continue from the best checkpoint with a larger beta, a lower optim.lr, or fewer steps";
            say("the KL divergence from the reference is beyond limits.kl", next, true);
        }
        if get("clip_ratio/region_mean").is_some_and(|share| share > CLIPPED) {
            let next = "lower optim.lr, or make fewer passes over one rollout";
            say("more than half of the probability ratios are clipped: the optimiser steps are too large", next, false);
        }
        let Some(reward) = get("reward") else { return found };
        if get("sampling/sampling_logp_difference/mean").is_some_and(|gap| gap > self.limits.drift) {
            let next = "try model.dtype: f32; if the difference stays, ft selftest --model DIR looks for its cause";
            say(
                "answers are sampled from another distribution than the one that is trained (limits.drift)",
                next,
                false,
            );
        }
        let now = [get("entropy"), get("completions/mean_length"), get("completions/clipped_ratio")];
        let now = now.map(|x| x.unwrap_or(f64::NAN));
        self.flat = if get("frac_reward_zero_std") == Some(1.0) { self.flat + 1.0 } else { 0.0 };
        if self.flat >= FLAT {
            let next = match reward > 0.5 {
                true => "the prompts have become too easy: use harder ones, or stop here",
                false => {
                    "no answer is ever right: start from a model that sometimes is (after a few steps of sft), add a \
                     reward for partly right answers, or raise the temperature or the number of answers per prompt"
                }
            };
            say(
                "all answers to a prompt get the same reward, in one rollout after another, so every advantage is zero",
                next,
                false,
            );
        }
        if (self.seen as usize) < FIRST {
            self.seen += 1.0;
            self.first.iter_mut().zip(now).for_each(|(sum, x)| *sum += x);
            return found;
        }
        let [entropy, length, cut] = self.first.map(|sum| sum / self.seen);
        if now[0] < COLLAPSE * entropy {
            let next =
                "lower optim.lr, add an entropy bonus (entropy: 0.001 to 0.01), or clip higher (epsilon_high: 0.28)";
            say("the entropy has collapsed: nearly every answer is the same", next, false);
        }
        if now[1] > LONGER * length || now[1] * LONGER < length {
            let next = "read the samples: the reward may favour long or short answers; a `length` reward or a larger beta limits the drift";
            say("the answers' length has drifted far from its value at the beginning", next, false);
        }
        if now[2] > cut + CUT {
            let next = "set sampling.missing_eos_penalty, or raise sampling.max_new_tokens if the answers are right";
            say(
                "many more answers are truncated than at the beginning: the model no longer ends its answers",
                next,
                false,
            );
        }
        found
    }

    /// Saves what a resumed run needs.
    pub fn save(&self, state: &mut StateTensors) {
        let numbers = [&self.first[..], &[self.seen, self.flat]].concat();
        state.insert("watch".into(), Tensor::from_slice(&numbers));
    }

    /// Loads what `put` saved.
    pub fn load(&mut self, state: &StateTensors) -> Result<()> {
        if let Some(numbers) = state.get("watch") {
            let numbers = Vec::<f64>::try_from(numbers)?;
            if let [a, b, c, seen, flat] = numbers.as_slice() {
                (self.first, self.seen, self.flat) = ([*a, *b, *c], *seen, *flat);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(pairs: &[(&str, f64)]) -> Means {
        pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect()
    }

    fn usual() -> Means {
        means(&[
            ("reward", 0.2),
            ("frac_reward_zero_std", 0.1),
            ("entropy", 1.0),
            ("completions/mean_length", 20.0),
            ("completions/clipped_ratio", 0.1),
            ("sampling/sampling_logp_difference/mean", 0.001),
            ("clip_ratio/region_mean", 0.1),
            ("objective/kl", 0.01),
        ])
    }

    #[test]
    fn a_normal_run_has_no_alarm_and_each_problem_is_named() {
        let cases: [(&str, f64, &str, bool); 7] = [
            ("entropy", 0.05, "entropy has collapsed", false),
            ("completions/mean_length", 60.0, "length has drifted", false),
            ("completions/mean_length", 5.0, "length has drifted", false),
            ("completions/clipped_ratio", 0.6, "are truncated", false),
            ("sampling/sampling_logp_difference/mean", 0.5, "another distribution", false),
            ("clip_ratio/region_mean", 0.7, "too large", false),
            ("objective/kl", 2.0, "beyond limits.kl", true),
        ];
        for (name, value, said, stop) in cases {
            let mut watch = RolloutMonitor::new(LimitSpec { kl: Some(1.0), ..Default::default() });
            for _ in 0..10 {
                assert_eq!(watch.check(&usual()), []);
            }
            let mut bad = usual();
            bad.insert(name.into(), value);
            let watch = watch.check(&bad);
            assert!(matches!(watch.as_slice(), [a] if a.cause.contains(said) && a.stop == stop), "{name}: {watch:?}");
        }
    }

    #[test]
    fn uniform_rewards_are_reported_after_a_while_and_the_count_survives_a_checkpoint() {
        let mut flat = usual();
        flat.insert("frac_reward_zero_std".into(), 1.0);
        let mut watch = RolloutMonitor::new(LimitSpec::default());
        for _ in 0..FLAT as usize - 1 {
            assert_eq!(watch.check(&flat), []);
        }
        let mut state = StateTensors::new();
        watch.save(&mut state);
        let mut resumed = RolloutMonitor::new(LimitSpec::default());
        resumed.load(&state).unwrap();
        assert!(resumed.check(&flat)[0].next.contains("no answer is ever right"));
    }
}
