//! The usual failures of learning from preferences, seen in the numbers of the steps: nothing moves, the order of answers
//! gets lost, or the chosen answers become unlikely together with the rejected ones.
//!
//! Looks at means of a window of steps, never at one step: what one batch says is chance. The doctor of a finished run
//! (`runs::diagnose`) asks the same questions of the same numbers.

use super::{Alarm, Means};
use std::collections::VecDeque;

/// Steps in a window.
const WINDOW: usize = 20;
/// Steps before standing still is called that: a warm-up is over by then.
const PATIENCE: usize = 50;
/// A margin below this many nats between the answers of a pair is no movement.
const STILL: f64 = 0.01;

/// The numbers of a step; NaN where a method has no such.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    loss: f64,
    /// Of what the model says now against what the reference says, in nats.
    chosen: f64,
    rejected: f64,
    margin: f64,
    accuracy: f64,
    /// Log-probability of the chosen answers.
    log_prob: f64,
}

/// Something wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sign {
    /// After so many steps model and reference are still so many nats apart, which is nothing.
    Still { steps: usize, nats: f64 },
    /// They are apart, but the loss does not see it: beta is too small.
    Blind { nats: f64, loss: f64 },
    /// The share of pairs in the right order was higher.
    Falling { best: f64, now: f64 },
    /// Chosen answers lost so many nats, rejected ones more; of so many that a chosen answer has.
    Displaced { chosen: f64, rejected: f64, of: f64 },
}

/// Follows a run.
pub struct Watch {
    method: &'static str,
    beta: f64,
    steps: usize,
    first: Vec<Numbers>,
    recent: VecDeque<Numbers>,
    /// The highest mean accuracy of a window, with its variance.
    best: Option<(f64, f64)>,
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = numbers.filter(|x| x.is_finite()).fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
    sum / n
}

/// The mean, and the variance of the mean.
fn spread(numbers: &[f64]) -> (f64, f64) {
    let m = mean(numbers.iter().copied());
    (m, mean(numbers.iter().map(|x| (x - m).powi(2))) / numbers.len() as f64)
}

impl Watch {
    /// For a method by its name in a recipe.
    pub fn new(method: &'static str, beta: f64) -> Self {
        Self { method, beta, steps: 0, first: Vec::new(), recent: VecDeque::new(), best: None }
    }

    /// Whether rewards are measured against a reference.
    fn referenced(&self) -> bool {
        matches!(self.method, "dpo" | "kto")
    }

    /// Takes in the means of a step.
    pub fn step(&mut self, means: impl Fn(&str) -> f64) {
        let now = Numbers {
            loss: means("loss"),
            chosen: means("rewards/chosen") / self.beta,
            rejected: means("rewards/rejected") / self.beta,
            margin: means("rewards/margins") / self.beta,
            accuracy: means("rewards/accuracies"),
            log_prob: means("logps/chosen"),
        };
        self.steps += 1;
        if self.first.len() < WINDOW {
            self.first.push(now);
        }
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        if self.recent.len() == WINDOW {
            let (accuracy, variance) = self.accuracy();
            if self.best.is_none_or(|(best, _)| accuracy > best) {
                self.best = Some((accuracy, variance));
            }
        }
    }

    fn accuracy(&self) -> (f64, f64) {
        spread(&self.recent.iter().map(|n| n.accuracy).collect::<Vec<_>>())
    }

    fn recent(&self, of: impl Fn(&Numbers) -> f64) -> f64 {
        mean(self.recent.iter().map(of))
    }

    /// What is wrong as things stand.
    pub fn signs(&self) -> Vec<Sign> {
        if self.steps < 2 * WINDOW {
            return Vec::new();
        }
        let all = [self.movement(), self.order(), self.displacement()];
        all.into_iter().flatten().collect()
    }

    fn movement(&self) -> Option<Sign> {
        if !self.referenced() || self.steps < PATIENCE {
            return None;
        }
        let (nats, loss) = (self.recent(|n| n.margin), self.recent(|n| n.loss));
        if nats.abs() < STILL {
            return Some(Sign::Still { steps: self.steps, nats });
        }
        let blind = self.method == "dpo" && (loss - std::f64::consts::LN_2).abs() < 1e-3 && nats.abs() > 1.0;
        blind.then_some(Sign::Blind { nats, loss })
    }

    fn order(&self) -> Option<Sign> {
        let ((best, before), (now, after)) = (self.best?, self.accuracy());
        (best - now > 0.15 + 3.0 * (before + after).sqrt()).then_some(Sign::Falling { best, now })
    }

    fn displacement(&self) -> Option<Sign> {
        let first = |of: fn(&Numbers) -> f64| mean(self.first.iter().map(of));
        let of = first(|n| n.log_prob).abs();
        // Against a reference a fall counts from zero and without the chance of which rows a step has; else from the
        // first steps.
        let (chosen, rejected, chance, least): (f64, f64, f64, f64) = if self.referenced() {
            (-self.recent(|n| n.chosen), -self.recent(|n| n.rejected), 0.0, 2.0)
        } else {
            let fall = |of: fn(&Numbers) -> f64| first(of) - self.recent(of);
            let variance = |numbers: Vec<f64>| spread(&numbers).1;
            let chance = variance(self.first.iter().map(|n| n.chosen).collect())
                + variance(self.recent.iter().map(|n| n.chosen).collect());
            (fall(|n| n.chosen), fall(|n| n.rejected), 3.0 * chance.sqrt(), 0.0)
        };
        let displaced = chosen > least.max(0.1 * of) + chance && rejected > chosen;
        displaced.then_some(Sign::Displaced { chosen, rejected, of })
    }

    /// Takes in the means of a step and says what is wrong.
    pub fn see(&mut self, means: &Means) -> Vec<Alarm> {
        self.step(|name| means.get(name).copied().unwrap_or(f64::NAN));
        self.signs().into_iter().map(|sign| self.alarm(sign)).collect()
    }

    fn alarm(&self, sign: Sign) -> Alarm {
        let method = self.method;
        let (cause, next) = match sign {
            Sign::Still { .. } => (
                format!(
                    "after {PATIENCE} steps the model still says what its reference says (margins below {STILL} nats{}): \
                     the learning rate is too low for so few steps, or no gradient arrives",
                    if method == "dpo" { ", loss at 0.693" } else { "" }
                ),
                "raise optim.lr ten times: adapters bear ten times the rate of full fine-tuning and more".to_string(),
            ),
            Sign::Blind { .. } => (
                "the loss stands at 0.693 while the answers of a pair are nats apart: beta is too small to see it".into(),
                format!("set method.{method}.beta: 0.1"),
            ),
            Sign::Falling { .. } => (
                "rewards/accuracies falls: fewer pairs are in the right order than before".into(),
                format!("lower optim.lr, raise method.{method}.beta, or look whether pairs contradict each other"),
            ),
            Sign::Displaced { .. } => (
                "the chosen answers lose probability together with the rejected ones (likelihood displacement): margins \
                 grow while both become unlikely"
                    .into(),
                self.remedy(),
            ),
        };
        Alarm { cause, next, stop: false }
    }

    /// The setting that keeps chosen answers likely.
    pub fn remedy(&self) -> String {
        match self.method {
            "dpo" => "set method.dpo.nll: 0.1 (cross-entropy of the chosen answers), raise method.dpo.beta, or lower optim.lr",
            "kto" => "raise method.kto.beta or method.kto.desirable_weight, or lower optim.lr",
            "simpo" => "set method.simpo.nll: 0.1 (cross-entropy of the chosen answers), or lower optim.lr",
            _ => "lower method.orpo.beta or optim.lr",
        }
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `n` steps whose numbers are functions of the step.
    fn run(method: &'static str, n: usize, means: impl Fn(usize, &str) -> f64) -> Vec<Sign> {
        let mut watch = Watch::new(method, 0.1);
        (0..n).for_each(|step| watch.step(|name| means(step, name)));
        watch.signs()
    }

    #[test]
    fn a_healthy_run_has_no_sign() {
        let healthy = |step: usize, name: &str| {
            let t = step as f64 / 100.0;
            match name {
                "loss" => 0.693 - 0.3 * t,
                "rewards/chosen" => 0.2 * t,
                "rewards/rejected" => -0.8 * t,
                "rewards/margins" => t,
                "rewards/accuracies" => 0.5 + 0.4 * t + if step.is_multiple_of(2) { 0.2 } else { -0.2 },
                _ => -50.0,
            }
        };
        assert_eq!(run("dpo", 100, healthy), []);
        assert_eq!(run("simpo", 100, healthy), []);
    }

    #[test]
    fn standing_still_is_told_from_a_beta_that_sees_nothing() {
        let still = |margin: f64| {
            move |_: usize, name: &str| match name {
                "loss" => std::f64::consts::LN_2,
                "rewards/margins" => margin,
                "rewards/accuracies" => 0.5,
                "logps/chosen" => -50.0,
                _ => 0.0,
            }
        };
        assert!(matches!(run("dpo", 60, still(1e-5))[..], [Sign::Still { steps: 60, .. }]));
        assert!(run("dpo", 40, still(1e-5)).is_empty(), "too soon to tell");
        assert!(run("orpo", 60, still(1e-5)).is_empty(), "there is no reference to stand at");
        assert!(matches!(run("dpo", 60, still(0.2))[..], [Sign::Blind { .. }]));
    }

    #[test]
    fn lost_order_and_displacement_are_seen() {
        let worse = |step: usize, name: &str| match name {
            "rewards/accuracies" => {
                if step < 40 {
                    0.9
                } else {
                    0.5
                }
            }
            "rewards/margins" => 0.5,
            "logps/chosen" => -50.0,
            _ => 0.0,
        };
        assert_eq!(run("dpo", 80, worse), [Sign::Falling { best: 0.9, now: 0.5 }]);
        let displaced = |step: usize, name: &str| match name {
            "rewards/chosen" => -0.01 * step as f64,
            "rewards/rejected" => -0.03 * step as f64,
            "rewards/margins" => 0.02 * step as f64,
            "rewards/accuracies" => 0.9,
            "logps/chosen" => -50.0,
            _ => 0.3,
        };
        let signs = run("dpo", 100, displaced);
        assert!(matches!(signs[..], [Sign::Displaced { chosen, rejected, .. }] if rejected > chosen), "{signs:?}");
        let alarms = Watch::new("dpo", 0.1).alarm(signs[0]);
        assert!(alarms.next.contains("method.dpo.nll"), "{alarms:?}");
    }
}
