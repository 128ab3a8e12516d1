//! `ft resume RUN --verify`: repeats steps of a run from a checkpoint and compares them with the run's records.
//!
//! Loss, gradient norm, learning rate and tokens of every step are compared with metrics.jsonl. At each step that has a
//! checkpoint, weights, optimiser, random generator and method are compared with it bit for bit. Nothing is written
//! into the run's folder.

use super::checkpoint::{Checkpoints, TrainingState};
use super::origin::{differences, origin_of};
use super::prepare;
use super::step::{StepOutcome, Stepper};
use crate::error::{Error, Result};
use crate::fsutil::{lock_folder, read_to_string};
use crate::recipe::plan::Plan;
use crate::report;
use crate::runs::folder::METRICS;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Result of a verification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunVerification {
    /// Step of the checkpoint at which the replay starts; 0 is the start of the run.
    pub from: u64,
    /// Step at which the replay ends, unless a difference ends it earlier.
    pub to: u64,
    /// True if nothing differs.
    pub same: bool,
    /// Number of steps compared with metrics.jsonl.
    pub steps_compared: u64,
    /// Steps of the checkpoints whose tensors were compared bit for bit.
    pub checkpoints_compared: Vec<u64>,
    /// The first step that differs.
    pub step: Option<u64>,
    /// Description of the difference: a number of metrics.jsonl with both values, or the first tensor of a checkpoint.
    pub difference: Option<String>,
}

/// Replays steps of the run that `plan` describes and compares them. `steps`: how many; `None`: those up to the last
/// checkpoint from the one before. Stops at the first difference. Fails if recipe or data changed since the run.
pub fn verify(plan: &Plan, steps: Option<u64>) -> Result<RunVerification> {
    let out = &plan.recipe.run.out;
    // The lock prevents that a run in progress removes checkpoints that the replay needs.
    let _held = lock_folder(out)?;
    let checkpoints = Checkpoints::of_run(&plan.recipe.run);
    let good = checkpoints.good_states();
    let Some(last) = good.last() else {
        return Err(Error::user(format!("{}: there is no undamaged checkpoint to compare with", out.display()))
            .hint("a run saves one at its end, and every run.save_every steps"));
    };
    let (from, to) = span(&good.iter().map(|s| s.step).collect::<Vec<_>>(), steps)?;
    let prepared = prepare::prepare(plan)?;
    let changed = differences(&last.origin, &origin_of(&prepared)?);
    if !changed.is_empty() {
        return Err(Error::user(format!(
            "{}: recipe or data changed since the run:\n  {}",
            out.display(),
            changed.join("\n  ")
        ))
        .hint("restore them: only a replay of the same recipe and data can be compared"));
    }
    let recorded = recorded(&out.join(METRICS))?;
    let model = prepared.load_model()?;
    let total = prepared.total_steps;
    let (mut method, _) = prepared.into_method(&model)?;
    let saved = good.iter().find(|s| s.step == from).cloned();
    let state = saved.unwrap_or_else(|| TrainingState::new(last.origin.clone()));
    let mut at = Stepper::begin(plan, &model, &mut *method, total, &checkpoints, state)?;
    let mut verdict = RunVerification {
        from,
        to,
        same: true,
        steps_compared: 0,
        checkpoints_compared: Vec::new(),
        step: None,
        difference: None,
    };
    while at.state.step < to {
        let done = at.advance(&mut *method)?;
        // Called as in the run, because the values that a method's alarms have seen are part of the method's state.
        let _ = method.alarms(&done.alarm_means());
        let step = at.state.step;
        report::info(format!("replayed step {step} of {from} to {to}: loss {:.4}", done.loss));
        let mut found = None;
        if let Some(then) = recorded.get(&step) {
            found = first_different_number(then, &done, at.state.tokens);
            verdict.steps_compared += 1;
        }
        if found.is_none() && good.iter().any(|s| s.step == step) {
            found = checkpoints.first_difference(step, &model, &at.optim, &at.other_state(&*method))?;
            verdict.checkpoints_compared.push(step);
        }
        if found.is_some() {
            (verdict.same, verdict.step, verdict.difference) = (false, Some(step), found);
            break;
        }
    }
    Ok(verdict)
}

/// Decides from which checkpoint (0: the start) to which step to replay.
///
/// With a count, two checkpoints that many steps apart are preferred, so that tensors can be compared at the end; if
/// there are none, the latest start from which the count fits.
fn span(good: &[u64], steps: Option<u64>) -> Result<(u64, u64)> {
    let last = good[good.len() - 1];
    let starts: Vec<u64> = std::iter::once(0).chain(good.iter().copied().filter(|s| *s > 0)).collect();
    let before = |limit: u64| starts.iter().copied().rfind(|s| *s <= limit);
    match steps {
        None => Ok((before(last.saturating_sub(1)).unwrap_or(0), last)),
        Some(0) => Err(Error::user("--verify 0 replays nothing").hint("give a number of steps, or --verify alone")),
        Some(k) if k > last => Err(Error::user(format!("--verify {k}: the run is at step {last}"))
            .hint(format!("give at most {last}, or --verify alone for the steps between its last two checkpoints"))),
        Some(k) => {
            let apart = starts.iter().copied().rfind(|s| good.contains(&(s + k)));
            let from = apart.or(before(last - k)).unwrap_or(0);
            Ok((from, from + k))
        }
    }
}

/// Reads the lines of metrics.jsonl that record steps, by step; empty if there is no such file.
fn recorded(path: &Path) -> Result<BTreeMap<u64, Value>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = read_to_string(path)?;
    let lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    Ok(lines.filter(|v| v.get("loss").is_some()).filter_map(|v| Some((v["step"].as_u64()?, v))).collect())
}

/// Compares a step with its recorded line. Describes the first number that differs.
fn first_different_number(then: &Value, now: &StepOutcome, tokens: u64) -> Option<String> {
    let number = |x: f64| if x.is_finite() { json!(x) } else { json!(x.to_string()) };
    let now = [
        ("tokens", json!(tokens)),
        ("lr", number(now.lr)),
        ("loss", number(now.loss)),
        ("grad_norm", number(now.norm)),
    ];
    let differs = |(name, value): &&(&str, Value)| then.get(name).is_some_and(|then| then != value);
    now.iter().find(differs).map(|(name, value)| format!("metrics.jsonl: `{name}` was {}, is {value}", then[*name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_prefers_two_checkpoints_so_far_apart() {
        assert_eq!(span(&[4, 8, 12], None).unwrap(), (8, 12));
        assert_eq!(span(&[12], None).unwrap(), (0, 12));
        assert_eq!(span(&[4, 8, 12], Some(4)).unwrap(), (8, 12));
        assert_eq!(span(&[4, 8, 12], Some(8)).unwrap(), (4, 12));
        assert_eq!(span(&[4, 8, 12], Some(3)).unwrap(), (8, 11));
        assert_eq!(span(&[4, 8, 12], Some(10)).unwrap(), (0, 10));
        assert!(span(&[4], Some(5)).is_err() && span(&[4], Some(0)).is_err());
    }
}
