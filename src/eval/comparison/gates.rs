//! Checks gates against results.

use super::{PairedMetric, main_metric};
use crate::error::{Error, Result};
use crate::eval::results::{MetricInfo, SuiteResults, TaskResults};
use crate::recipe::gate::Gate;
use crate::stats::bootstrap::Estimate;
use serde::Serialize;

/// What results say about a gate, for one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateOutcome {
    /// The gate as written.
    pub gate: String,
    /// Name of its task.
    pub task: String,
    /// Name of its metric.
    pub metric: String,
    /// Name of the model.
    pub subject: String,
    /// The model's value of the metric.
    pub value: f64,
    /// What the value had to reach, or not to exceed.
    pub bound: f64,
    /// The value minus the bound, with its 95 % interval. Paired over items if the bound depends on the baseline; without an
    /// interval if the metric is then no mean over items or likelihood of texts.
    pub margin: Estimate,
    /// Whether the value meets the gate.
    pub holds: bool,
    /// Whether the whole interval says the same as the value. False without an interval.
    pub certain: bool,
}

/// Checks each gate for each model other than the baseline, or for the only model. Fails for a gate whose task or metric the
/// results lack, and for one that depends on a baseline that there is not.
pub fn check_gates(results: &SuiteResults, gates: &[Gate]) -> Result<Vec<GateOutcome>> {
    let mut outcomes = Vec::new();
    for gate in gates {
        let (task, metric) = find(results, gate)?;
        let several = results.subjects.len() > 1;
        if gate.bound.is_relative() && !several {
            return Err(Error::user(format!("gate `{}`: there is no baseline, only one model", gate.text))
                .hint("evaluate the baseline, too, and name its results first"));
        }
        for i in usize::from(several)..results.subjects.len() {
            outcomes.push(outcome(task, metric, gate, i, &results.subjects[i].name)?);
        }
    }
    Ok(outcomes)
}

fn find<'a>(results: &'a SuiteResults, gate: &Gate) -> Result<(&'a TaskResults, &'a MetricInfo)> {
    let unknown = |what: &str, names: Vec<&str>| {
        Err(Error::user(format!("gate `{}`: the results have no {what}", gate.text)).hint(format!(
            "there {} {}",
            if names.len() == 1 { "is" } else { "are" },
            names.join(", ")
        )))
    };
    let Some(task) = results.tasks.iter().find(|task| task.name == gate.task) else {
        return unknown(&format!("task {}", gate.task), results.tasks.iter().map(|t| t.name.as_str()).collect());
    };
    match task.metrics.iter().find(|metric| metric.name == gate.metric) {
        Some(metric) => Ok((task, metric)),
        None => {
            let names = task.metrics.iter().map(|m| m.name.as_str()).collect();
            unknown(&format!("metric {} of task {}", gate.metric, gate.task), names)
        }
    }
}

fn outcome(task: &TaskResults, metric: &MetricInfo, gate: &Gate, i: usize, subject: &str) -> Result<GateOutcome> {
    let estimate = |i: usize| {
        task.results[i].estimates.get(&metric.name).copied().ok_or_else(|| {
            Error::user(format!("gate `{}`: {} has no value for this model", gate.text, metric.name))
                .hint(format!("a gate on {} always has one", main_metric(task).name))
        })
    };
    let value = estimate(i)?;
    let bound = gate.bound.offset
        + match gate.bound.is_relative() {
            true => gate.bound.factor * estimate(0)?.value,
            false => 0.0,
        };
    let interval = match gate.bound.is_relative() {
        true => paired_interval(task, metric, gate, i),
        false => value.interval.map(|ends| ends.map(|end| end - bound)),
    };
    let holds = |margin: f64| gate.relation.holds(margin, 0.0);
    let held = gate.relation.holds(value.value, bound);
    Ok(GateOutcome {
        gate: gate.text.clone(),
        task: task.name.clone(),
        metric: metric.name.clone(),
        subject: subject.to_string(),
        value: value.value,
        bound,
        margin: Estimate { value: value.value - bound, interval },
        holds: held,
        certain: interval.is_some_and(|ends| ends.into_iter().all(|end| holds(end) == held)),
    })
}

/// Returns the interval of the value minus the bound, resampling items; `None` if the metric is no mean over items or likelihood.
fn paired_interval(task: &TaskResults, metric: &MetricInfo, gate: &Gate, i: usize) -> Option<[f64; 2]> {
    let all: Vec<usize> = (0..task.items.len()).collect();
    let margin = |base: f64, subject: f64| subject - gate.bound.factor * base - gate.bound.offset;
    PairedMetric::of(task, metric, i)?.estimate(&gate.text, &all, margin)?.interval
}
