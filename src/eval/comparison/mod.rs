//! Compares the models of an evaluation with the first of them, the baseline, on the same items.
//!
//! `paired_metric`: a metric of two models on any of the items, and which items changed. `paired`: differences, tests and tables by
//! category. `gates`: conditions that have to
//! hold. `join`: several evaluations as one. `check`: whether results fit together. Pure functions of results; no file, no model.

mod check;
mod gates;
mod join;
mod paired;
mod paired_metric;

pub use gates::{GateOutcome, check_gates};
pub use join::{Evaluated, join};
pub use paired::{CategoryComparison, PairedTest, SubjectComparison, TestKind, Verdict};
pub use paired_metric::{ChangedItems, PairedMetric};

use super::results::{Direction, MetricInfo, SuiteResults, TaskResults};
use crate::error::Result;
use crate::stats::paired::holm;
use serde::Serialize;

/// How the models of an evaluation compare with its baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Name of the baseline.
    pub baseline: String,
    /// The tasks in the suite's order.
    pub tasks: Vec<TaskComparison>,
}

/// How the models compare with the baseline on one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskComparison {
    /// The task's name.
    pub task: String,
    /// Name of the metric that is compared.
    pub metric: String,
    /// Which values of it are better.
    pub direction: Direction,
    /// Number of items.
    pub rows: usize,
    /// The models other than the baseline, in the order of the results.
    pub subjects: Vec<SubjectComparison>,
}

impl Comparison {
    /// Compares every model with the first on the main metric of every task. P-values are corrected for all tasks and models
    /// together (Holm). Fails if the results do not fit together.
    pub fn of(results: &SuiteResults) -> Result<Self> {
        check::check(results)?;
        let mut tasks: Vec<TaskComparison> = Vec::new();
        for task in &results.tasks {
            let metric = main_metric(task);
            let others = results.subjects.iter().enumerate().skip(1);
            tasks.push(TaskComparison {
                task: task.name.clone(),
                metric: metric.name.clone(),
                direction: metric.direction(),
                rows: task.items.len(),
                subjects: others.map(|(i, subject)| SubjectComparison::of(task, metric, i, &subject.name)).collect(),
            });
        }
        let mut tested: Vec<&mut PairedTest> =
            tasks.iter_mut().flat_map(|t| &mut t.subjects).filter_map(|s| s.test.as_mut()).collect();
        let corrected = holm(&tested.iter().map(|test| test.p).collect::<Vec<_>>());
        tested.iter_mut().zip(corrected).for_each(|(test, p)| test.p_corrected = p);
        for task in &mut tasks {
            let direction = task.direction;
            task.subjects.iter_mut().for_each(|subject| subject.decide(direction));
        }
        Ok(Self { baseline: results.subjects[0].name.clone(), tasks })
    }

    /// Returns the tasks on which a model got this verdict.
    pub fn tasks_with(&self, subject: &str, verdict: Verdict) -> Vec<&TaskComparison> {
        let of = |task: &&TaskComparison| task.subjects.iter().any(|s| s.subject == subject && s.verdict == verdict);
        self.tasks.iter().filter(of).collect()
    }

    /// Returns the names of the models that are compared with the baseline.
    pub fn subjects(&self) -> Vec<&str> {
        self.tasks.first().map_or(Vec::new(), |task| task.subjects.iter().map(|s| s.subject.as_str()).collect())
    }
}

/// Returns the main metric of a task that passed `check`.
pub fn main_metric(task: &TaskResults) -> &MetricInfo {
    task.metrics.iter().find(|m| m.name == task.main_metric).expect("checked: the main metric is one of the metrics")
}

#[cfg(test)]
pub(super) mod tests;
