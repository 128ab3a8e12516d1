//! What the numbers of a rollout say is wrong with a run: named, with the likely cause and the next thing to try.

use super::keep::State;
use super::spec::LimitSpec;
use crate::error::Result;
use crate::methods::{Alarm, Means};
use tch::Tensor;

/// Rollouts that say how the run began.
const FIRST: usize = 3;
/// Rollouts in a row without a difference in reward.
const FLAT: f64 = 8.0;
/// A share of the beginning's entropy that is a collapse.
const COLLAPSE: f64 = 0.1;
/// How many times longer (or shorter) answers may become.
const LONGER: f64 = 2.5;
/// By how much more answers may be cut off.
const CUT: f64 = 0.3;
/// A share of clipped tokens that says that steps are too long.
const CLIPPED: f64 = 0.5;

/// Looks at the means of each rollout.
#[derive(Debug, Clone)]
pub struct Watch {
    limits: LimitSpec,
    /// Sums over the first rollouts: entropy, length, share cut off.
    first: [f64; 3],
    /// Rollouts seen.
    seen: f64,
    /// Rollouts in a row without a difference in reward.
    flat: f64,
}

impl Watch {
    pub fn new(limits: LimitSpec) -> Self {
        Self { limits, first: [0.0; 3], seen: 0.0, flat: 0.0 }
    }

    /// What the means of a step say; those of a step without a new rollout say nothing of it.
    pub fn look(&mut self, means: &Means) -> Vec<Alarm> {
        let get = |name: &str| means.get(name).copied();
        let mut found = Vec::new();
        let mut say = |cause: &str, next: &str, stop: bool| {
            found.push(Alarm { cause: cause.into(), next: next.into(), stop });
        };
        if let (Some(kl), Some(limit)) = (get("objective/kl"), self.limits.kl)
            && kl > limit
        {
            let next = "go on from the best checkpoint with a larger beta, a lower optim.lr, or fewer steps";
            say("the KL divergence from the reference is beyond limits.kl", next, true);
        }
        if get("clip_ratio/region_mean").is_some_and(|share| share > CLIPPED) {
            let next = "lower optim.lr, or learn fewer passes from one rollout";
            say("more than half of the probability ratios are clipped: the steps are too long", next, false);
        }
        let Some(reward) = get("reward") else { return found };
        if get("sampling/sampling_logp_difference/mean").is_some_and(|gap| gap > self.limits.drift) {
            let next = "try model.dtype: f32; if the gap stays, ft selftest --model DIR looks for its cause";
            say("answers are drawn from another distribution than is learnt (limits.drift)", next, false);
        }
        let now = [get("entropy"), get("completions/mean_length"), get("completions/clipped_ratio")];
        let now = now.map(|x| x.unwrap_or(f64::NAN));
        self.flat = if get("frac_reward_zero_std") == Some(1.0) { self.flat + 1.0 } else { 0.0 };
        if self.flat >= FLAT {
            let next = match reward > 0.5 {
                true => "the prompts are too easy by now: take harder ones, or stop here",
                false => {
                    "no answer is ever right: begin from a model that sometimes is (a few steps of sft), add a reward that gives part marks, or raise the temperature or the answers a prompt"
                }
            };
            say(
                "all answers to a prompt get the same reward, rollout after rollout: there is nothing to learn from",
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
            let next =
                "does the reward pay for length? Look at the samples; a `length` reward or a larger beta holds it";
            say("the answers' length has drifted far from where it began", next, false);
        }
        if now[2] > cut + CUT {
            let next = "set sampling.missing_eos_penalty, or raise sampling.max_new_tokens if the answers are right";
            say("many more answers are cut off than at the beginning: the model forgets to end", next, false);
        }
        found
    }

    /// Writes what a resumed run must know.
    pub fn put(&self, state: &mut State) {
        let numbers = [&self.first[..], &[self.seen, self.flat]].concat();
        state.insert("watch".into(), Tensor::from_slice(&numbers));
    }

    /// Reads it back.
    pub fn take(&mut self, state: &State) -> Result<()> {
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
    fn a_usual_run_is_left_alone_and_each_fault_is_named() {
        let cases: [(&str, f64, &str, bool); 7] = [
            ("entropy", 0.05, "entropy has collapsed", false),
            ("completions/mean_length", 60.0, "length has drifted", false),
            ("completions/mean_length", 5.0, "length has drifted", false),
            ("completions/clipped_ratio", 0.6, "cut off", false),
            ("sampling/sampling_logp_difference/mean", 0.5, "another distribution", false),
            ("clip_ratio/region_mean", 0.7, "too long", false),
            ("objective/kl", 2.0, "beyond limits.kl", true),
        ];
        for (name, value, said, stop) in cases {
            let mut watch = Watch::new(LimitSpec { kl: Some(1.0), ..Default::default() });
            for _ in 0..10 {
                assert_eq!(watch.look(&usual()), []);
            }
            let mut bad = usual();
            bad.insert(name.into(), value);
            let alarms = watch.look(&bad);
            assert!(matches!(alarms.as_slice(), [a] if a.cause.contains(said) && a.stop == stop), "{name}: {alarms:?}");
        }
    }

    #[test]
    fn equal_rewards_are_told_after_a_while_and_the_count_survives_a_checkpoint() {
        let mut flat = usual();
        flat.insert("frac_reward_zero_std".into(), 1.0);
        let mut watch = Watch::new(LimitSpec::default());
        for _ in 0..FLAT as usize - 1 {
            assert_eq!(watch.look(&flat), []);
        }
        let mut state = State::new();
        watch.put(&mut state);
        let mut resumed = Watch::new(LimitSpec::default());
        resumed.take(&state).unwrap();
        assert!(resumed.look(&flat)[0].next.contains("no answer is ever right"));
    }
}
