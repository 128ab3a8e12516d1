//! Writes a summary of a report for a terminal.

use super::EvaluationReport;
use super::format::{NumberFormat, p_value, words};
use super::markdown::{overlap_lines, verdict_words};
use super::verdict::{gate_words, power, sentences};
use super::{groups, losses};
use crate::characters::printable;
use crate::eval::comparison::main_metric;
use crate::report::table;

/// Returns the verdict, a table of all tasks, what rules without a model reach, and the gates.
pub fn render(report: &EvaluationReport) -> String {
    let mut parts = vec![sentences(report).join("\n"), table(&results(report))];
    let powers = powers(report);
    if !powers.is_empty() {
        parts.push(powers.join("\n"));
    }
    let (lost, by_group) = (losses::rows(report), groups::rows(report));
    if !lost.is_empty() {
        parts.push(losses::sentences(report).join("\n"));
        parts.push(table(&titled(&losses::COLUMNS, lost.into_iter().map(|row| row.to_vec()))));
    }
    if !by_group.is_empty() {
        parts.push(format!("{}\n{}", table(&titled(groups::columns(report), by_group)), groups::NOTE));
    }
    if report.rules.iter().any(|rules| !rules.is_empty()) {
        parts.push(table(&rules(report)));
    }
    if !report.contamination.is_empty() {
        parts.push(overlap_lines(report).join("\n"));
    }
    if !report.gates.is_empty() {
        parts.push(table(&gates(report)));
    }
    printable(&parts.join("\n\n"))
}

/// Puts the titles of the columns above the rows.
fn titled(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let titles = columns.iter().map(|title| title.to_string()).collect();
    std::iter::once(titles).chain(rows).collect()
}

fn results(report: &EvaluationReport) -> Vec<Vec<String>> {
    let compared = !report.comparison.subjects().is_empty();
    let columns = ["task", "metric", "model", "value (95 %)", "difference (95 %)", "p", "verdict"];
    let mut rows = vec![columns[..if compared { 7 } else { 4 }].iter().map(|c| c.to_string()).collect::<Vec<_>>()];
    for (task, results) in report.comparison.tasks.iter().zip(&report.results.tasks) {
        let format = NumberFormat::of(results, main_metric(results));
        for (i, subject) in report.results.subjects.iter().enumerate() {
            let value = results.results[i].estimates.get(&task.metric).map_or("-".into(), |e| format.estimate(*e));
            let (name, metric) = if i == 0 { (task.task.clone(), words(&task.metric)) } else { Default::default() };
            let mut row = vec![name, metric, subject.name.clone(), value];
            if let Some(found) = i.checked_sub(1).and_then(|i| task.subjects.get(i)) {
                row.push(found.difference.map_or("-".into(), |d| format.difference_estimate(d, found.interval)));
                row.push(found.test.map_or("-".into(), |test| p_value(test.p_corrected)));
                row.push(verdict_words(found.verdict).into());
            }
            rows.push(row);
        }
    }
    rows
}

fn powers(report: &EvaluationReport) -> Vec<String> {
    let tasks = report.comparison.tasks.iter().zip(&report.results.tasks);
    tasks
        .flat_map(|(task, results)| {
            let format = NumberFormat::of(results, main_metric(results));
            task.subjects.iter().filter_map(move |found| {
                Some(format!("{}, {}: {}", task.task, found.subject, power(task, found, format)?))
            })
        })
        .collect()
}

fn rules(report: &EvaluationReport) -> Vec<Vec<String>> {
    let mut rows = vec![["task", "rule without a model", "value"].map(String::from).to_vec()];
    for (task, rules) in report.results.tasks.iter().zip(&report.rules) {
        for (i, rule) in rules.iter().enumerate() {
            let format = NumberFormat::of_rule(task, rule);
            let name = if i == 0 { task.name.clone() } else { String::new() };
            rows.push(vec![name, rule.rule.clone(), format!("{} {}", format.value(rule.value), words(&rule.metric))]);
        }
    }
    rows
}

fn gates(report: &EvaluationReport) -> Vec<Vec<String>> {
    let mut rows = vec![["gate", "model", "value - bound (95 %)", "result"].map(String::from).to_vec()];
    rows.extend(report.gates.iter().map(|gate| {
        let margin = report.format_of(gate).difference_estimate(gate.margin.value, gate.margin.interval);
        vec![gate.gate.clone(), gate.subject.clone(), margin, gate_words(gate).into()]
    }));
    rows
}
