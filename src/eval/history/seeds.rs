//! Mean and spread of metrics over runs of one recipe that differ in their seed.

use super::index::EvaluationEntry;
use crate::error::{Error, Result};
use crate::stats::students_t::Spread;
use serde::Serialize;

/// One metric over runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricSpread {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Whether it is the task's main metric.
    pub main: bool,
    /// Mean and spread of the values of the last model of each run.
    pub value: Spread,
    /// The same of what that is more than the first model of its evaluation; `None` if one was evaluated alone.
    pub change: Option<Spread>,
    /// The values in the order of the runs.
    pub values: Vec<f64>,
}

/// Computes mean and spread of every metric that all evaluations have. Fails for fewer than two, or if they asked different questions.
pub fn spreads(entries: &[EvaluationEntry]) -> Result<Vec<MetricSpread>> {
    let [first, others @ ..] = entries else { return Err(Error::bug("no evaluations")) };
    if others.is_empty() {
        return Err(Error::user("one run has no spread").hint("name two runs or more: ft runs seeds RUN RUN RUN"));
    }
    for other in others {
        let asked = |entry: &EvaluationEntry| {
            entry.tasks.iter().map(|task| (task.name.clone(), task.questions.clone())).collect::<Vec<_>>()
        };
        if let Some(((a, _), (b, _))) = asked(first).into_iter().zip(asked(other)).find(|(a, b)| a != b) {
            let which =
                if a == b { format!("task {a} has other questions") } else { format!("the tasks are {a} and {b}") };
            return Err(differ(first, other, &which));
        }
        if first.tasks.len() != other.tasks.len() {
            return Err(differ(first, other, &format!("{} and {} tasks", first.tasks.len(), other.tasks.len())));
        }
    }
    let mut found = Vec::new();
    for (t, task) in first.tasks.iter().enumerate() {
        for metric in &task.metrics {
            let of = |entry: &EvaluationEntry, last: bool| {
                let estimates = &entry.tasks[t].estimates;
                let of_subject = if last { estimates.last()? } else { estimates.first()? };
                of_subject.get(&metric.name).map(|estimate| estimate.value)
            };
            let values: Option<Vec<f64>> = entries.iter().map(|entry| of(entry, true)).collect();
            let Some((values, value)) = values.and_then(|values| Some((values.clone(), Spread::of(&values)?))) else {
                continue;
            };
            let change = |entry: &EvaluationEntry| {
                (entry.subjects.len() > 1).then(|| Some(of(entry, true)? - of(entry, false)?)).flatten()
            };
            let changes: Option<Vec<f64>> = entries.iter().map(change).collect();
            found.push(MetricSpread {
                task: task.name.clone(),
                metric: metric.name.clone(),
                main: metric.name == task.main_metric,
                value,
                change: changes.and_then(|changes| Spread::of(&changes)),
                values,
            });
        }
    }
    Ok(found)
}

fn differ(a: &EvaluationEntry, b: &EvaluationEntry, how: &str) -> Error {
    let names = format!("{} and {}", a.folder.display(), b.folder.display());
    Error::user(format!("{names} are results of different questions: {how}"))
        .hint("evaluate all runs with the same suite on the same files")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::history::series::tests::drifting;

    #[test]
    fn runs_have_a_mean_a_spread_and_a_change_against_their_base() {
        let entries = drifting();
        let found = spreads(&entries[..3]).unwrap().remove(0);
        assert_eq!((found.values.as_slice(), found.main, found.value.count), (&[0.75, 0.775, 0.75][..], true, 3));
        assert!((found.value.mean - 0.7583333333333333).abs() < 1e-12);
        let change = found.change.unwrap();
        assert!((change.mean - 0.2583333333333333).abs() < 1e-12 && change.interval.unwrap()[0] > 0.2, "{change:?}");
    }

    #[test]
    fn different_questions_and_a_single_run_are_refused() {
        let mut entries = drifting();
        assert!(spreads(&entries[..1]).unwrap_err().to_string().contains("one run has no spread"));
        entries[1].tasks[0].questions = "other".into();
        let told = spreads(&entries[..2]).unwrap_err().to_string();
        assert!(told.contains("run-0 and run-1") && told.contains("task arc has other questions"), "{told}");
        entries[1].tasks.clear();
        assert!(spreads(&entries[..2]).unwrap_err().to_string().contains("1 and 0 tasks"));
    }
}
