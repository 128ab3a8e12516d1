//! Computes the learning rate of each step.

use crate::recipe::optim::{OptimSection, Schedule};

/// Learning rate as a function of the step: a linear warm-up from 0, then the schedule. Steps are counted from 0; as in
/// transformers, step `s` of a warm-up of `w` steps runs at `s / w` of the peak, so the first step has the rate 0.
#[derive(Debug, Clone)]
pub struct LearningRate {
    peak: f64,
    warmup: u64,
    total: u64,
    decay: u64,
    floor: f64,
    kind: Schedule,
}

impl LearningRate {
    /// Reads warm-up and schedule from `optim`. `total` is the number of optimiser steps of the whole run.
    pub fn new(optim: &OptimSection, peak: f64, total: u64) -> Self {
        let warmup = if optim.warmup < 1.0 { (optim.warmup * total as f64).ceil() as u64 } else { optim.warmup as u64 };
        let decay = (optim.decay * total as f64).round() as u64;
        Self { peak, warmup: warmup.min(total), total, decay, floor: optim.floor, kind: optim.schedule }
    }

    /// Returns the learning rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let share = |from: u64| {
            let length = self.total.saturating_sub(from).max(1);
            (step.saturating_sub(from) as f64 / length as f64).min(1.0)
        };
        let fall = match self.kind {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - share(self.warmup),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share(self.warmup)).cos()),
            Schedule::Wsd => 1.0 - share(self.total.saturating_sub(self.decay).max(self.warmup)),
        };
        self.peak * (self.floor + (1.0 - self.floor) * fall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optim(kind: Schedule, warmup: f64, floor: f64) -> OptimSection {
        OptimSection { schedule: kind, warmup, floor, decay: 0.5, ..OptimSection::default() }
    }

    #[test]
    fn warm_up_is_a_straight_line_from_zero() {
        let lr = LearningRate::new(&optim(Schedule::Cosine, 4.0, 0.0), 1.0, 20);
        let got: Vec<f64> = (0..5).map(|s| lr.at(s)).collect();
        assert_eq!(got, [0.0, 0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn schedules_fall_to_their_floor() {
        let at = |kind, floor, step| LearningRate::new(&optim(kind, 0.0, floor), 2.0, 10).at(step);
        assert_eq!(at(Schedule::Constant, 0.0, 9), 2.0);
        assert!((at(Schedule::Linear, 0.0, 5) - 1.0).abs() < 1e-12);
        assert!((at(Schedule::Cosine, 0.0, 5) - 1.0).abs() < 1e-12);
        assert!((at(Schedule::Cosine, 0.1, 10) - 0.2).abs() < 1e-12);
        assert_eq!(at(Schedule::Wsd, 0.0, 4), 2.0);
        assert!((at(Schedule::Wsd, 0.0, 6) - 1.6).abs() < 1e-12);
    }

    #[test]
    fn warm_up_is_a_share_below_one_and_steps_above() {
        let lr = LearningRate::new(&optim(Schedule::Linear, 0.1, 0.0), 1.0, 50);
        assert!(lr.at(4) < 1.0 && lr.at(5) == 1.0);
        let lr = LearningRate::new(&optim(Schedule::Linear, 10.0, 0.0), 1.0, 50);
        assert!(lr.at(9) < 1.0 && lr.at(10) == 1.0);
    }
}
