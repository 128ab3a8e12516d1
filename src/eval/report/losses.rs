//! Says what was forgotten, in sentences and in the cells of a table.

use super::EvaluationReport;
use super::format::{NumberFormat, list, p_value, words};
use super::markdown::verdict_words;
use crate::eval::comparison::{Verdict, main_metric};
use crate::eval::forgetting::{SubjectForgetting, TaskLoss};

/// Titles of the columns of [`rows`].
pub const COLUMNS: [&str; 7] =
    ["task", "metric", "model", "before -> after", "loss (95 %)", "loss that shows", "p, verdict"];

/// Returns a sentence for each model: what it lost of what the first could do; empty if no task was chosen for it.
pub fn sentences(report: &EvaluationReport) -> Vec<String> {
    report.forgetting.iter().map(|found| sentence(report, found)).collect()
}

fn format_of(report: &EvaluationReport, task: &TaskLoss) -> NumberFormat {
    let results = report.results.tasks.iter().find(|results| results.name == task.task);
    results.map_or(NumberFormat::Plain, |results| NumberFormat::of(results, main_metric(results)))
}

fn sentence(report: &EvaluationReport, found: &SubjectForgetting) -> String {
    let base = &report.comparison.baseline;
    let with = |verdict| found.tasks.iter().filter(move |task| task.verdict == verdict);
    let (worse, total) = (with(Verdict::Worse).count(), found.tasks.len());
    let of = format!("Of {total} task{} that tell what {base} could do", if total == 1 { "" } else { "s" });
    let told = |task: &TaskLoss| {
        let format = format_of(report, task);
        let size = task.loss.map_or(String::new(), |loss| format!(" by {}", format.size(loss.value)));
        let ends = task.loss.and_then(|loss| loss.interval);
        format!(
            "{}{size}{}",
            task.task,
            ends.map_or(String::new(), |ends| format!(" (95 % {})", format.interval(ends)))
        )
    };
    let mut text = match worse {
        0 => format!("{of}, none shows a loss of {}.", found.subject),
        n => {
            let named: Vec<String> = with(Verdict::Worse).map(told).collect();
            let named: Vec<&str> = named.iter().map(String::as_str).collect();
            format!("{of}, {} got worse on {n}: {}.", found.subject, list(&named))
        }
    };
    let changed: Vec<&str> = with(Verdict::Changed).map(|task| task.task.as_str()).collect();
    if !changed.is_empty() {
        text += &format!(" It differs on {}, where neither end of the metric is better.", list(&changed));
    }
    let seen: Vec<String> = with(Verdict::NotShown)
        .filter_map(|task| Some(format!("{} on {}", format_of(report, task).size(task.detectable?), task.task)))
        .collect();
    if !seen.is_empty() && seen.len() <= 5 {
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        text += &format!(" Losses of {} and more would have shown.", list(&seen));
    }
    text
}

/// Returns the cells of a table: a row for each task of each model, the largest loss first.
pub fn rows(report: &EvaluationReport) -> Vec<[String; 7]> {
    let row = |subject: &str, task: &TaskLoss| {
        let format = format_of(report, task);
        let value = |x: Option<f64>| x.map_or("-".to_string(), |x| format.value(x));
        let loss = task.loss.map_or("-".into(), |loss| {
            format.size(loss.value)
                + &loss.interval.map_or(String::new(), |ends| format!(" ({})", format.interval(ends)))
        });
        [
            task.task.clone(),
            words(&task.metric),
            subject.to_string(),
            format!("{} -> {}", value(task.before), value(task.after)),
            loss,
            task.detectable.map_or("-".into(), |size| format.size(size)),
            format!("{}, {}", task.p_corrected.map_or("-".into(), p_value), verdict_words(task.verdict)),
        ]
    };
    report.forgetting.iter().flat_map(|found| found.tasks.iter().map(|task| row(&found.subject, task))).collect()
}
