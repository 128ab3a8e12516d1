//! Reads the curves of a run from `metrics.jsonl`.
//!
//! That file is the source of truth for every page and chart. A number that was not finite stays NaN or infinite, so
//! that curves show a gap instead of an invented value.

use super::facts::RecordedAim;
use crate::error::{Error, Result};
use crate::fsutil::read_to_string;
use crate::models::gradient_reach::STATE_GRADIENT;
use serde_json::Value;
use std::path::Path;

/// One optimiser step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPoint {
    /// The step, counted from 1.
    pub step: u64,
    /// Passes over the training rows so far.
    pub epoch: f64,
    /// Mean training loss.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Tokens per second in this step.
    pub tokens_per_s: f64,
    /// Seconds this step took.
    pub seconds: f64,
    /// Peak tensor bytes so far.
    pub memory: u64,
    /// The method's other means.
    pub more: Vec<(String, f64)>,
}

impl StepPoint {
    /// The name of the factor on the loss among the means, in runs that compute in float16.
    pub const LOSS_SCALE: &str = "loss_scale";

    /// Returns true if the gradients were too large for float16 because of the factor on the loss, which was halved then.
    pub fn overflowed(&self) -> bool {
        let factor = self.more.iter().find(|(name, _)| name == Self::LOSS_SCALE);
        self.loss.is_finite() && !self.grad_norm.is_finite() && factor.is_some_and(|(_, factor)| *factor > 1.0)
    }

    /// Returns true if the update was applied; false if the step was skipped because a number was not finite.
    pub fn was_applied(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl History {
    /// Returns, for each step that measured them, how much a loss depends on earlier states: the step, and (distance in
    /// tokens, norm of the gradient), the nearest first.
    pub fn state_gradients(&self) -> Vec<(u64, Vec<(f64, f64)>)> {
        let of_step = |p: &StepPoint| {
            let found = p
                .more
                .iter()
                .filter_map(|(name, norm)| Some((name.strip_prefix(STATE_GRADIENT)?.parse::<f64>().ok()?, *norm)));
            let mut found: Vec<(f64, f64)> = found.collect();
            found.sort_by(|a, b| a.0.total_cmp(&b.0));
            (!found.is_empty()).then_some((p.step, found))
        };
        self.steps.iter().filter_map(of_step).collect()
    }
}

/// Means over the validation rows after a step; step 0 is before the first.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// The step.
    pub step: u64,
    /// `loss` and the method's other means.
    pub means: Vec<(String, f64)>,
}

impl Validation {
    /// Returns the mean loss; NaN if the method has none.
    pub fn loss(&self) -> f64 {
        self.mean("loss")
    }

    /// Returns one of the means; NaN if there is none with this name.
    pub fn mean(&self, name: &str) -> f64 {
        self.means.iter().find(|(k, _)| k == name).map_or(f64::NAN, |(_, v)| *v)
    }
}

/// All steps and validations of a run, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The steps.
    pub steps: Vec<StepPoint>,
    /// The validations.
    pub validations: Vec<Validation>,
    /// The metric that decides which checkpoint is best. metrics.jsonl does not contain it; callers set it from
    /// run.json.
    pub aim: RecordedAim,
}

impl History {
    /// Reads `metrics.jsonl`. An incomplete last line, of a run that is writing or was killed, is ignored. Fails if
    /// another line is not JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_to_string(path)?;
        let mut history = Self::default();
        for (i, line) in text.split_inclusive('\n').enumerate() {
            match serde_json::from_str::<Value>(line) {
                Ok(value) => history.add(&value),
                Err(_) if !line.ends_with('\n') => break,
                Err(e) => {
                    return Err(Error::user(format!("{}:{}: {e}", path.display(), i + 1))
                        .hint("each line is one JSON object that ft wrote; was the file edited?"));
                }
            }
        }
        Ok(history)
    }

    fn add(&mut self, line: &Value) {
        let Some(o) = line.as_object() else { return };
        let number = |k: &str| o.get(k).map_or(f64::NAN, read_number);
        let count = |k: &str| o.get(k).and_then(Value::as_u64).unwrap_or(0);
        let evaluated: Vec<(String, f64)> =
            o.iter().filter_map(|(k, v)| Some((k.strip_prefix("eval_")?.to_string(), read_number(v)))).collect();
        if !evaluated.is_empty() {
            self.validations.push(Validation { step: count("step"), means: evaluated });
        }
        if !o.contains_key("loss") {
            return;
        }
        let known =
            ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "items", "seconds", "memory"]
                .as_slice();
        self.steps.push(StepPoint {
            step: count("step"),
            epoch: number("epoch"),
            loss: number("loss"),
            lr: number("lr"),
            grad_norm: number("grad_norm"),
            tokens: count("tokens"),
            tokens_per_s: number("tokens_per_s"),
            seconds: number("seconds"),
            memory: count("memory"),
            more: o
                .iter()
                .filter(|(k, _)| !known.contains(&k.as_str()) && !k.starts_with("eval_"))
                .map(|(k, v)| (k.clone(), read_number(v)))
                .collect(),
        });
    }

    /// Returns the best validation. The one before the first step does not count.
    pub fn best(&self) -> Option<&Validation> {
        let trained = self.validations.iter().filter(|v| v.step > 0 && self.aim_value(v).is_finite());
        let sign = if self.aim.higher { -1.0 } else { 1.0 };
        trained.min_by(|a, b| (sign * self.aim_value(a)).total_cmp(&(sign * self.aim_value(b))))
    }

    /// Returns a validation's value of the metric that decides which checkpoint is best.
    pub fn aim_value(&self, v: &Validation) -> f64 {
        v.mean(&self.aim.metric)
    }

    /// Returns the number of steps done.
    pub fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |p| p.step)
    }

    /// Returns tokens per second over all steps, not counting the time of validation and saving.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds: f64 = self.steps.iter().map(|p| p.seconds).filter(|s| s.is_finite()).sum();
        let tokens = self.steps.last()?.tokens;
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Returns the peak of tensor bytes.
    pub fn memory(&self) -> u64 {
        self.steps.iter().map(|p| p.memory).max().unwrap_or(0)
    }
}

/// Reads a number. NaN and infinity, which JSON lacks, are stored as text: `"NaN"`, `"inf"`.
fn read_number(v: &Value) -> f64 {
    match v {
        Value::String(s) => s.parse().unwrap_or(f64::NAN),
        v => v.as_f64().unwrap_or(f64::NAN),
    }
}

/// Replaces each value by the mean of the `window` values around it (fewer at the ends), so that the curve does not
/// lag. A value that is not finite becomes NaN and is left out of the means.
pub fn smooth(values: &[f64], window: usize) -> Vec<f64> {
    let half = window / 2;
    let (mut sum, mut n, mut from, mut to) = (0.0, 0.0, 0, 0);
    let mut means = Vec::with_capacity(values.len());
    for (i, v) in values.iter().enumerate() {
        while to < values.len().min(i + half + 1) {
            if values[to].is_finite() {
                sum += values[to];
                n += 1.0;
            }
            to += 1;
        }
        while from + half < i {
            if values[from].is_finite() {
                sum -= values[from];
                n -= 1.0;
            }
            from += 1;
        }
        means.push(if v.is_finite() { sum / n } else { f64::NAN });
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_read_up_to_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text = concat!(
            "{\"step\":0,\"eval_loss\":3.5}\n",
            "{\"step\":1,\"epoch\":0.5,\"loss\":3.0,\"lr\":0.1,\"grad_norm\":\"inf\",\"tokens\":7,\"accuracy\":0.25}\n",
            "{\"step\":2,\"epoch\":1.0,\"lo"
        );
        std::fs::write(&path, text).unwrap();
        let h = History::read(&path).unwrap();
        assert_eq!((h.steps.len(), h.validations.len(), h.last_step()), (1, 1, 1));
        assert_eq!(h.steps[0].more, [("accuracy".to_string(), 0.25)]);
        assert!(!h.steps[0].was_applied() && h.steps[0].grad_norm.is_infinite());
        assert_eq!(h.best(), None, "the validation before the first step is no result");
        std::fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":2}\n").unwrap();
        let error = History::read(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:2"), "{error}");
    }

    #[test]
    fn smoothing_keeps_a_constant_and_a_gap() {
        assert_eq!(smooth(&[2.0, 2.0, f64::NAN, 2.0], 10).iter().filter(|v| (**v - 2.0).abs() < 1e-12).count(), 3);
        assert!(smooth(&[1.0, f64::NAN], 3)[1].is_nan());
        assert_eq!(smooth(&[1.0, 2.0, 6.0, 4.0], 3), [1.5, 3.0, 4.0, 5.0]);
        assert_eq!(smooth(&[1.0, 2.0, 6.0], 1), [1.0, 2.0, 6.0]);
    }
}
