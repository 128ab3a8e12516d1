//! The alarms of GRPO and RLOO, found in the metrics of rollouts: each names the problem, its likely cause and what to
//! try next.

use super::spec::LimitSpec;
use crate::error::Result;
use crate::methods::contract::Means;
use crate::methods::state::{self, StateTensors};
use crate::methods::watch::{AlarmRule, Problem, Repeat, RunRecord, Watch};

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

/// Metrics of rollouts, summed or of one rollout.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct RolloutMeans {
    entropy: f64,
    length: f64,
    /// Share of truncated answers.
    truncated: f64,
}

/// The metrics of a step.
#[derive(Debug, Clone, PartialEq, Default)]
struct StepMeans {
    kl: Option<f64>,
    /// Share of clipped probability ratios.
    clipped: Option<f64>,
    /// The rest is known on a step with a new rollout only.
    reward: Option<f64>,
    drift: Option<f64>,
    rollout: RolloutMeans,
    /// True if the rollout is compared with those at the beginning of the run, false if it is one of them.
    compared: bool,
}

/// What the rules need of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutHistory {
    limits: LimitSpec,
    /// Sums over the first rollouts.
    first: RolloutMeans,
    /// Number of rollouts in these sums.
    rollouts: f64,
    /// Number of consecutive rollouts with uniform rewards.
    uniform: f64,
    now: StepMeans,
}

impl RunRecord for RolloutHistory {
    fn record(&mut self, means: &Means) {
        let get = |name: &str| means.get(name).copied();
        let number = |name: &str| get(name).unwrap_or(f64::NAN);
        self.now =
            StepMeans { kl: get("objective/kl"), clipped: get("clip_ratio/region_mean"), ..StepMeans::default() };
        let Some(reward) = get("reward") else { return };
        let rollout = RolloutMeans {
            entropy: number("entropy"),
            length: number("completions/mean_length"),
            truncated: number("completions/clipped_ratio"),
        };
        let compared = self.rollouts as usize >= FIRST;
        let drift = get("sampling/sampling_logp_difference/mean");
        self.now = StepMeans { reward: Some(reward), drift, rollout, compared, ..self.now };
        self.uniform = if get("frac_reward_zero_std") == Some(1.0) { self.uniform + 1.0 } else { 0.0 };
        if !compared {
            self.rollouts += 1.0;
            self.first.entropy += rollout.entropy;
            self.first.length += rollout.length;
            self.first.truncated += rollout.truncated;
        }
    }
}

impl RolloutHistory {
    /// Returns the means at the beginning of the run and those of the new rollout; `None` on a step without one, or at
    /// the beginning.
    fn first_and_now(&self) -> Option<(RolloutMeans, RolloutMeans)> {
        let mean = |sum: f64| sum / self.rollouts;
        let RolloutMeans { entropy, length, truncated } = self.first;
        let first = RolloutMeans { entropy: mean(entropy), length: mean(length), truncated: mean(truncated) };
        self.now.compared.then_some((first, self.now.rollout))
    }

    fn divergence(&self) -> Option<Problem> {
        let (kl, limit) = (self.now.kl?, self.limits.kl?);
        let next = "continue from the best checkpoint with a larger beta, a lower optim.lr, or fewer steps";
        (kl > limit).then(|| Problem::new("the KL divergence from the reference is beyond limits.kl", next))
    }

    fn clipping(&self) -> Option<Problem> {
        let cause = "more than half of the probability ratios are clipped: the optimiser steps are too large";
        (self.now.clipped? > CLIPPED)
            .then(|| Problem::new(cause, "lower optim.lr, or make fewer passes over one rollout"))
    }

    fn drift(&self) -> Option<Problem> {
        let cause = "answers are sampled from another distribution than the one that is trained (limits.drift)";
        let next = "try model.dtype: f32; if the difference stays, ft selftest --model DIR looks for its cause";
        (self.now.drift? > self.limits.drift).then(|| Problem::new(cause, next))
    }

    fn uniform_rewards(&self) -> Option<Problem> {
        let reward = self.now.reward?;
        let next = match reward > 0.5 {
            true => "the prompts have become too easy: use harder ones, or stop here",
            false => {
                "no answer is ever right: start from a model that sometimes is (after a few steps of sft), add a \
                 reward for partly right answers, or raise the temperature or the number of answers per prompt"
            }
        };
        let cause =
            "all answers to a prompt get the same reward, in one rollout after another, so every advantage is zero";
        (self.uniform >= FLAT).then(|| Problem::new(cause, next))
    }

    fn entropy(&self) -> Option<Problem> {
        let (first, now) = self.first_and_now()?;
        let next = "lower optim.lr, add an entropy bonus (entropy: 0.001 to 0.01), or clip higher (epsilon_high: 0.28)";
        (now.entropy < COLLAPSE * first.entropy)
            .then(|| Problem::new("the entropy has collapsed: nearly every answer is the same", next))
    }

    fn length(&self) -> Option<Problem> {
        let (first, now) = self.first_and_now()?;
        let next = "read the samples: the reward may favour long or short answers; a `length` reward or a larger beta limits the drift";
        (now.length > LONGER * first.length || now.length * LONGER < first.length)
            .then(|| Problem::new("the answers' length has drifted far from its value at the beginning", next))
    }

    fn truncation(&self) -> Option<Problem> {
        let (first, now) = self.first_and_now()?;
        let cause = "many more answers are truncated than at the beginning: the model no longer ends its answers";
        let next = "set sampling.missing_eos_penalty, or raise sampling.max_new_tokens if the answers are right";
        (now.truncated > first.truncated + CUT).then(|| Problem::new(cause, next))
    }
}

/// The alarms of GRPO and RLOO.
const RULES: &[AlarmRule<RolloutHistory>] = &[
    AlarmRule { name: "divergence", harmful: true, find: RolloutHistory::divergence },
    AlarmRule { name: "clipping", harmful: false, find: RolloutHistory::clipping },
    AlarmRule { name: "drift", harmful: false, find: RolloutHistory::drift },
    AlarmRule { name: "uniform rewards", harmful: false, find: RolloutHistory::uniform_rewards },
    AlarmRule { name: "entropy", harmful: false, find: RolloutHistory::entropy },
    AlarmRule { name: "length", harmful: false, find: RolloutHistory::length },
    AlarmRule { name: "truncation", harmful: false, find: RolloutHistory::truncation },
];

/// Returns a watch that has seen no rollout.
pub fn watch(limits: LimitSpec) -> Watch<RolloutHistory> {
    let history = RolloutHistory {
        limits,
        first: RolloutMeans::default(),
        rollouts: 0.0,
        uniform: 0.0,
        now: StepMeans::default(),
    };
    Watch::new(history, RULES, Repeat::EachStep, true)
}

/// The name of the only tensor of a watch in a checkpoint.
const STORED: &str = "watch";

impl Watch<RolloutHistory> {
    /// Adds what a resumed run needs to a checkpoint.
    pub fn save(&self, state: &mut StateTensors) {
        let RolloutHistory { first: RolloutMeans { entropy, length, truncated }, rollouts, uniform, .. } =
            *self.record();
        state::put(state, STORED, &[entropy, length, truncated, rollouts, uniform]);
    }

    /// Restores what `save` added. Keeps what it has if the checkpoint has no such tensor.
    pub fn load(&mut self, state: &StateTensors) -> Result<()> {
        if state.contains_key(STORED) {
            let [entropy, length, truncated, rollouts, uniform] = state::exactly(state, STORED)?;
            let history = self.record_mut();
            history.first = RolloutMeans { entropy, length, truncated };
            (history.rollouts, history.uniform) = (rollouts, uniform);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

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
            let mut run = watch(LimitSpec { kl: Some(1.0), ..Default::default() });
            for _ in 0..10 {
                assert_eq!(run.check(&usual()), []);
            }
            let mut bad = usual();
            bad.insert(name.into(), value);
            let found = run.check(&bad);
            assert!(matches!(found.as_slice(), [a] if a.cause.contains(said) && a.stop == stop), "{name}: {found:?}");
        }
    }

    #[test]
    fn uniform_rewards_are_reported_after_a_while_and_the_count_survives_a_checkpoint() {
        let mut flat = usual();
        flat.insert("frac_reward_zero_std".into(), 1.0);
        let mut run = watch(LimitSpec::default());
        for _ in 0..FLAT as usize - 1 {
            assert_eq!(run.check(&flat), []);
        }
        let mut state = StateTensors::new();
        run.save(&mut state);
        let mut resumed = watch(LimitSpec::default());
        resumed.load(&state).unwrap();
        assert!(resumed.check(&flat)[0].next.contains("no answer is ever right"));
    }

    /// The tensor of a checkpoint of version 0.1: sums of entropy, length and truncated share over the first rollouts,
    /// their number, and the number of rollouts with uniform rewards.
    #[test]
    fn the_stored_layout_is_fixed_and_another_length_is_damage() {
        let stored = [3.0, 60.0, 0.3, 3.0, 7.0];
        let mut state = StateTensors::from([("watch".to_string(), Tensor::from_slice(&stored))]);
        let mut run = watch(LimitSpec::default());
        run.load(&state).unwrap();
        assert_eq!(run.record().first, RolloutMeans { entropy: 3.0, length: 60.0, truncated: 0.3 });
        assert_eq!((run.record().rollouts, run.record().uniform), (3.0, 7.0));
        let mut again = StateTensors::new();
        run.save(&mut again);
        assert_eq!(Vec::<f64>::try_from(&again["watch"]).unwrap(), stored);
        state.insert("watch".into(), Tensor::from_slice(&stored[..4]));
        let error = watch(LimitSpec::default()).load(&state).unwrap_err();
        assert!(format!("{error:?}").contains("checkpoint is damaged"), "{error:?}");
        assert!(error.to_string().contains("`watch` has 4 numbers, expected 5"), "{error}");
        watch(LimitSpec::default()).load(&StateTensors::new()).unwrap();
    }
}
