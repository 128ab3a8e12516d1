//! Says what a model lost of what the first model could do, on the tasks of a suite that were chosen for it (`forgetting: true`). Pure
//! functions of results.

use super::comparison::{Comparison, SubjectComparison, TaskComparison, Verdict};
use super::results::SuiteResults;
use crate::stats::bootstrap::Estimate;
use serde::Serialize;

/// What one model lost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubjectForgetting {
    /// Name of the model.
    pub subject: String,
    /// The tasks that were chosen for it, the largest loss first.
    pub tasks: Vec<TaskLoss>,
}

/// What one model lost on one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskLoss {
    /// The task's name.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The first model's value.
    pub before: Option<f64>,
    /// The model's value.
    pub after: Option<f64>,
    /// How much worse the model is, in units of the metric, with its paired 95 % interval; below 0 it is better. `None` without values,
    /// and if neither end of the metric is better.
    pub loss: Option<Estimate>,
    /// The loss divided by the first model's value; `None` if that is 0.
    pub relative: Option<f64>,
    /// The p-value of the difference, corrected for all comparisons of the evaluation.
    pub p_corrected: Option<f64>,
    /// The loss that so many items would have shown in 80 % of all cases.
    pub detectable: Option<f64>,
    /// What the test says.
    pub verdict: Verdict,
}

impl TaskLoss {
    fn of(task: &TaskComparison, found: &SubjectComparison) -> Self {
        let loss = found.difference.zip(task.direction.sign()).map(|(difference, better)| (difference, -better));
        let loss = loss.map(|(difference, sign)| Estimate {
            value: sign * difference,
            interval: found.interval.map(|[low, high]| if sign > 0.0 { [low, high] } else { [0.0 - high, 0.0 - low] }),
        });
        let before = found.baseline_value;
        Self {
            task: task.task.clone(),
            metric: task.metric.clone(),
            before,
            after: found.value,
            relative: loss.zip(before.filter(|before| *before != 0.0)).map(|(loss, before)| loss.value / before.abs()),
            loss,
            p_corrected: found.test.map(|test| test.p_corrected),
            detectable: found.detectable,
            verdict: found.verdict,
        }
    }
}

/// Computes what each model other than the first lost; empty if no task was chosen for it.
pub fn forgetting(results: &SuiteResults, comparison: &Comparison) -> Vec<SubjectForgetting> {
    let chosen: Vec<&TaskComparison> = results
        .tasks
        .iter()
        .zip(&comparison.tasks)
        .filter(|(task, _)| task.forgetting)
        .map(|(_, compared)| compared)
        .collect();
    if chosen.is_empty() {
        return Vec::new();
    }
    let of = |subject: &str| {
        let loss = |task: &&TaskComparison| {
            task.subjects.iter().find(|found| found.subject == subject).map(|found| TaskLoss::of(task, found))
        };
        let mut tasks: Vec<TaskLoss> = chosen.iter().filter_map(loss).collect();
        let size = |task: &TaskLoss| task.relative.or(task.loss.map(|loss| loss.value)).unwrap_or(f64::NEG_INFINITY);
        tasks.sort_by(|a, b| size(b).total_cmp(&size(a)));
        SubjectForgetting { subject: subject.to_string(), tasks }
    };
    comparison.subjects().into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, results, task};

    fn right(right: usize) -> Vec<f64> {
        (0..40).map(|i| f64::from(u8::from(i < right))).collect()
    }

    #[test]
    fn losses_are_positive_whatever_the_metric_and_the_largest_comes_first() {
        let losses = |more: f64| (0..40).map(|i| 1.0 + f64::from(i % 5) / 10.0 + more).collect::<Vec<f64>>();
        let mut made = results(vec![
            task("arc", metric("acc"), &[right(20), right(19)]),
            task("medical", metric("acc"), &[right(5), right(35)]),
            task("wiki", metric("loss"), &[losses(0.0), losses(0.6)]),
        ]);
        assert!(forgetting(&made, &Comparison::of(&made).unwrap()).is_empty(), "no task was chosen");
        made.tasks[0].forgetting = true;
        made.tasks[2].forgetting = true;
        let found = forgetting(&made, &Comparison::of(&made).unwrap());
        let [tuned] = &found[..] else { panic!("one model") };
        let [wiki, arc] = &tuned.tasks[..] else { panic!("two tasks") };
        assert_eq!((wiki.task.as_str(), arc.task.as_str()), ("wiki", "arc"));
        assert!((wiki.loss.unwrap().value - 0.6).abs() < 1e-12 && (wiki.relative.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!((wiki.verdict, arc.verdict), (Verdict::Worse, Verdict::NotShown));
        let [low, high] = arc.loss.unwrap().interval.unwrap();
        assert!((arc.loss.unwrap().value - 0.025).abs() < 1e-12 && low <= 0.0 && high > 0.025);
        assert!(arc.detectable.unwrap() > 0.025 && arc.p_corrected == Some(1.0));
        made.tasks[2].metrics[0].undirected = true;
        let found = forgetting(&made, &Comparison::of(&made).unwrap());
        let wiki = found[0].tasks.iter().find(|task| task.task == "wiki").unwrap();
        assert_eq!((wiki.loss, wiki.relative, wiki.verdict), (None, None, Verdict::Changed));
    }
}
