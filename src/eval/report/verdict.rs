//! Says in sentences what a comparison found.

use super::EvaluationReport;
use super::format::{NumberFormat, list, words};
use crate::eval::comparison::{GateOutcome, SubjectComparison, TaskComparison, Verdict, main_metric};

/// Returns a sentence for each model that is compared with the baseline, or one that says that nothing is compared.
pub fn sentences(report: &EvaluationReport) -> Vec<String> {
    let subjects = report.comparison.subjects();
    if subjects.is_empty() {
        return vec![format!("Only {} was evaluated, so nothing is compared.", report.comparison.baseline)];
    }
    subjects.into_iter().map(|subject| sentence(report, subject)).collect()
}

fn sentence(report: &EvaluationReport, subject: &str) -> String {
    let base = &report.comparison.baseline;
    if let [task] = &report.comparison.tasks[..] {
        let found = task.subjects.iter().find(|s| s.subject == subject);
        return found.map_or_else(String::new, |found| sentence_of_one(report, task, found));
    }
    let on = |verdict| -> Vec<&str> {
        report.comparison.tasks_with(subject, verdict).into_iter().map(|task| task.task.as_str()).collect()
    };
    let (better, worse) = (on(Verdict::Better), on(Verdict::Worse));
    let (changed, not_shown, not_tested) = (on(Verdict::Changed), on(Verdict::NotShown), on(Verdict::NotTested));
    let total = report.comparison.tasks.len();
    let named = |names: &[&str]| if names.len() <= 5 { format!(" ({})", list(names)) } else { String::new() };
    let mut text = match (better.len(), worse.len()) {
        (0, 0) if !changed.is_empty() => {
            format!("{subject} is neither better nor worse than {base} on any of {total} tasks.")
        }
        (0, 0) => format!("No difference between {subject} and {base} was shown on any of {total} tasks."),
        (0, n) => format!("{subject} is worse than {base} on {n} of {total} tasks{}, better on none.", named(&worse)),
        (n, 0) => format!("{subject} is better than {base} on {n} of {total} tasks{}, worse on none.", named(&better)),
        (n, m) => format!(
            "{subject} is better than {base} on {n} of {total} tasks{}, and worse on {m}{}.",
            named(&better),
            named(&worse)
        ),
    };
    if !changed.is_empty() {
        text += &format!(" It differs on {}, where neither end of the metric is better.", others(&changed));
    }
    if !not_shown.is_empty() && better.len() + worse.len() + changed.len() > 0 {
        text += &format!(" On {}, no difference was shown.", others(&not_shown));
    }
    if !not_tested.is_empty() {
        text += &format!(" On {}, no test applies to the metric.", others(&not_tested));
    }
    text
}

/// Returns `1 task (a)` or `2 tasks (a and b)`; without the names if they are many.
fn others(names: &[&str]) -> String {
    let count = format!("{} task{}", names.len(), if names.len() == 1 { "" } else { "s" });
    if names.len() <= 5 { format!("{count} ({})", list(names)) } else { count }
}

fn sentence_of_one(report: &EvaluationReport, task: &TaskComparison, found: &SubjectComparison) -> String {
    let Some(results) = report.results.tasks.iter().find(|t| t.name == task.task) else { return String::new() };
    let format = NumberFormat::of(results, main_metric(results));
    let base = &report.comparison.baseline;
    let values = match (found.value, found.baseline_value) {
        (Some(value), Some(baseline)) => {
            format!("{} {} instead of {}", words(&task.metric), format.value(value), format.value(baseline))
        }
        _ => words(&task.metric),
    };
    let difference = found.difference.map_or(String::new(), |difference| {
        let interval =
            found.interval.map_or(String::new(), |ends| format!(", 95 % {}", format.difference_interval(ends)));
        format!(" (difference {}{interval})", format.difference(difference))
    });
    let name = &found.subject;
    match found.verdict {
        Verdict::Better => format!("{name} is better than {base} on {}: {values}{difference}.", task.task),
        Verdict::Worse => format!("{name} is worse than {base} on {}: {values}{difference}.", task.task),
        Verdict::Changed => {
            format!(
                "{name} differs from {base} on {}, where neither end of the metric is better: {values}{difference}.",
                task.task
            )
        }
        Verdict::NotShown => {
            format!("No difference between {name} and {base} was shown on {}: {values}{difference}.", task.task)
        }
        Verdict::NotTested => format!("{name} on {}: {values}{difference}; no test applies to the metric.", task.task),
    }
}

/// Returns what this number of items could have shown; `None` if that is not known.
pub fn power(task: &TaskComparison, found: &SubjectComparison, format: NumberFormat) -> Option<String> {
    let detectable = found.detectable?;
    Some(format!(
        "{} items show differences of {} and more in 80 % of all cases",
        crate::report::count(task.rows as u64),
        format.size(detectable)
    ))
}

/// Returns the result of a gate in words.
pub fn gate_words(outcome: &GateOutcome) -> &'static str {
    match (outcome.holds, outcome.certain) {
        (true, true) => "holds",
        (true, false) => "holds, not certain",
        (false, true) => "does not hold",
        (false, false) => "does not hold, not certain",
    }
}
