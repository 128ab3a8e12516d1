//! Alarms for preference training, found in the metrics of the steps: the policy does not move, the order of the
//! answers gets lost, or the chosen answers become unlikely together with the rejected ones.
//!
//! Compares means over a window of steps and never looks at a single step: the numbers of one batch are mostly noise.
//! The diagnosis of a finished run (`runs::diagnose`) applies the same rules to the same metrics.

use super::contract::Means;
use super::watch::{AlarmRule, Problem, Repeat, RunRecord, Watch};
use std::collections::VecDeque;

/// Steps in a window.
const WINDOW: usize = 20;
/// Steps before missing movement is reported: a warm-up is over by then.
const PATIENCE: usize = 50;
/// A margin between the answers of a pair below this many nats counts as no movement.
const STILL: f64 = 0.01;

/// The metrics of one step; NaN where a method has none.
#[derive(Debug, Clone, Copy)]
struct PreferenceMeans {
    loss: f64,
    /// Log-probability under the policy minus that under the reference, in nats.
    chosen: f64,
    rejected: f64,
    margin: f64,
    accuracy: f64,
    /// Log-probability of the chosen answers.
    log_prob: f64,
}

/// A failure of preference training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PreferenceSymptom {
    /// Policy and reference still hardly differ.
    Unchanged {
        /// Steps taken.
        steps: usize,
        /// Mean absolute difference of their log-probabilities of an answer.
        nats: f64,
    },
    /// Policy and reference differ, but the loss does not change: beta is too small.
    BetaTooSmall {
        /// Mean absolute difference of the log-probabilities of an answer.
        nats: f64,
        /// Mean loss of the last steps.
        loss: f64,
    },
    /// The share of pairs in the right order has fallen.
    AccuracyFalls {
        /// The best share so far.
        best: f64,
        /// The share over the last steps.
        now: f64,
    },
    /// Chosen answers became less likely, and rejected ones even more so.
    Displaced {
        /// Nats that a chosen answer lost.
        chosen: f64,
        /// Nats that a rejected answer lost.
        rejected: f64,
        /// Negative log-probability of a chosen answer at first, in nats.
        of: f64,
    },
}

/// The metrics of a run, and the failures of preference training that they show.
pub struct PreferenceMonitor {
    method: &'static str,
    beta: f64,
    steps: usize,
    first: Vec<PreferenceMeans>,
    recent: VecDeque<PreferenceMeans>,
    /// The highest mean accuracy of any window, with the variance of that mean.
    best: Option<(f64, f64)>,
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = numbers.filter(|x| x.is_finite()).fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
    sum / n
}

/// Returns the mean, and the variance of the mean.
fn spread(numbers: &[f64]) -> (f64, f64) {
    let m = mean(numbers.iter().copied());
    (m, mean(numbers.iter().map(|x| (x - m).powi(2))) / numbers.len() as f64)
}

impl PreferenceMonitor {
    /// Starts with no steps; `method` is the name in a recipe.
    pub fn new(method: &'static str, beta: f64) -> Self {
        Self { method, beta, steps: 0, first: Vec::new(), recent: VecDeque::new(), best: None }
    }

    /// Returns true if the method's rewards are relative to a reference model.
    fn referenced(&self) -> bool {
        matches!(self.method, "dpo" | "kto")
    }

    /// Adds the means of a step.
    pub fn record(&mut self, means: impl Fn(&str) -> f64) {
        let now = PreferenceMeans {
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

    fn recent(&self, of: impl Fn(&PreferenceMeans) -> f64) -> f64 {
        mean(self.recent.iter().map(of))
    }

    /// Returns the failures that the steps so far show; none before two windows are full.
    pub fn symptoms(&self) -> Vec<PreferenceSymptom> {
        let all = [self.movement(), self.order(), self.displacement()];
        all.into_iter().flatten().filter(|_| self.windows_are_full()).collect()
    }

    fn windows_are_full(&self) -> bool {
        self.steps >= 2 * WINDOW
    }

    fn movement(&self) -> Option<PreferenceSymptom> {
        if !self.referenced() || self.steps < PATIENCE {
            return None;
        }
        let (nats, loss) = (self.recent(|n| n.margin), self.recent(|n| n.loss));
        if nats.abs() < STILL {
            return Some(PreferenceSymptom::Unchanged { steps: self.steps, nats });
        }
        let blind = self.method == "dpo" && (loss - std::f64::consts::LN_2).abs() < 1e-3 && nats.abs() > 1.0;
        blind.then_some(PreferenceSymptom::BetaTooSmall { nats, loss })
    }

    fn order(&self) -> Option<PreferenceSymptom> {
        let ((best, before), (now, after)) = (self.best?, self.accuracy());
        (best - now > 0.15 + 3.0 * (before + after).sqrt()).then_some(PreferenceSymptom::AccuracyFalls { best, now })
    }

    fn displacement(&self) -> Option<PreferenceSymptom> {
        let first = |of: fn(&PreferenceMeans) -> f64| mean(self.first.iter().map(of));
        let of = first(|n| n.log_prob).abs();
        // With a reference, a fall is measured from zero and does not depend on which rows a step has. Without one, it
        // is measured from the first steps and must exceed three standard errors.
        let (chosen, rejected, chance, least): (f64, f64, f64, f64) = if self.referenced() {
            (-self.recent(|n| n.chosen), -self.recent(|n| n.rejected), 0.0, 2.0)
        } else {
            let fall = |of: fn(&PreferenceMeans) -> f64| first(of) - self.recent(of);
            let variance = |numbers: Vec<f64>| spread(&numbers).1;
            let chance = variance(self.first.iter().map(|n| n.chosen).collect())
                + variance(self.recent.iter().map(|n| n.chosen).collect());
            (fall(|n| n.chosen), fall(|n| n.rejected), 3.0 * chance.sqrt(), 0.0)
        };
        let displaced = chosen > least.max(0.1 * of) + chance && rejected > chosen;
        displaced.then_some(PreferenceSymptom::Displaced { chosen, rejected, of })
    }

    /// Explains a failure, once two windows are full.
    fn found(&self, symptom: Option<PreferenceSymptom>) -> Option<Problem> {
        symptom.filter(|_| self.windows_are_full()).map(|symptom| self.problem(symptom))
    }

    fn problem(&self, sign: PreferenceSymptom) -> Problem {
        let method = self.method;
        let (cause, next) = match sign {
            PreferenceSymptom::Unchanged { .. } => (
                format!(
                    "after {PATIENCE} steps the policy still equals its reference (margins below {STILL} nats{}): \
                     the learning rate is too low for so few steps, or the gradient is zero",
                    if method == "dpo" { ", loss at 0.693" } else { "" }
                ),
                "multiply optim.lr by 10: adapters tolerate ten times the learning rate of full fine-tuning, or more"
                    .to_string(),
            ),
            PreferenceSymptom::BetaTooSmall { .. } => (
                "the loss stays at 0.693 although the answers of a pair differ by more than 1 nat: beta is too small"
                    .into(),
                format!("set method.{method}.beta: 0.1"),
            ),
            PreferenceSymptom::AccuracyFalls { .. } => (
                "rewards/accuracies falls: fewer pairs are in the right order than before".into(),
                format!("lower optim.lr, raise method.{method}.beta, or check whether pairs contradict each other"),
            ),
            PreferenceSymptom::Displaced { .. } => (
                "the chosen answers lose probability together with the rejected ones (likelihood displacement): \
                 margins grow while both become unlikely"
                    .into(),
                self.remedy(),
            ),
        };
        Problem { cause, next }
    }

    /// Names the settings that keep the chosen answers likely.
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

impl RunRecord for PreferenceMonitor {
    fn record(&mut self, means: &Means) {
        PreferenceMonitor::record(self, |name| means.get(name).copied().unwrap_or(f64::NAN));
    }
}

/// The alarms of preference training. None of them ends the run.
const RULES: &[AlarmRule<PreferenceMonitor>] = &[
    AlarmRule { name: "movement", harmful: false, find: |run| run.found(run.movement()) },
    AlarmRule { name: "order", harmful: false, find: |run| run.found(run.order()) },
    AlarmRule { name: "displacement", harmful: false, find: |run| run.found(run.displacement()) },
];

/// Returns a watch for a method of preference training; `method` is its name in a recipe.
pub fn watch(method: &'static str, beta: f64) -> Watch<PreferenceMonitor> {
    Watch::new(PreferenceMonitor::new(method, beta), RULES, Repeat::EachStep, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `n` steps whose metrics are functions of the step, and returns the failures found.
    fn run(method: &'static str, n: usize, means: impl Fn(usize, &str) -> f64) -> Vec<PreferenceSymptom> {
        let mut watch = PreferenceMonitor::new(method, 0.1);
        (0..n).for_each(|step| watch.record(|name| means(step, name)));
        watch.symptoms()
    }

    #[test]
    fn a_healthy_run_has_no_symptom() {
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
    fn no_movement_and_a_beta_that_is_too_small_are_distinguished() {
        let still = |margin: f64| {
            move |_: usize, name: &str| match name {
                "loss" => std::f64::consts::LN_2,
                "rewards/margins" => margin,
                "rewards/accuracies" => 0.5,
                "logps/chosen" => -50.0,
                _ => 0.0,
            }
        };
        assert!(matches!(run("dpo", 60, still(1e-5))[..], [PreferenceSymptom::Unchanged { steps: 60, .. }]));
        assert!(run("dpo", 40, still(1e-5)).is_empty(), "too early to say");
        assert!(run("orpo", 60, still(1e-5)).is_empty(), "there is no reference to be equal to");
        assert!(matches!(run("dpo", 60, still(0.2))[..], [PreferenceSymptom::BetaTooSmall { .. }]));
    }

    #[test]
    fn lost_order_and_displacement_are_detected() {
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
        assert_eq!(run("dpo", 80, worse), [PreferenceSymptom::AccuracyFalls { best: 0.9, now: 0.5 }]);
        let displaced = |step: usize, name: &str| match name {
            "rewards/chosen" => -0.01 * step as f64,
            "rewards/rejected" => -0.03 * step as f64,
            "rewards/margins" => 0.02 * step as f64,
            "rewards/accuracies" => 0.9,
            "logps/chosen" => -50.0,
            _ => 0.3,
        };
        let signs = run("dpo", 100, displaced);
        assert!(
            matches!(signs[..], [PreferenceSymptom::Displaced { chosen, rejected, .. }] if rejected > chosen),
            "{signs:?}"
        );
        let alarms = PreferenceMonitor::new("dpo", 0.1).problem(signs[0]);
        assert!(alarms.next.contains("method.dpo.nll"), "{alarms:?}");
    }
}
