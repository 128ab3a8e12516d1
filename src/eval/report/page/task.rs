//! Renders the section of one task.

use super::bars::{Bar, bars};
use super::{badge, examples, reliability, tables};
use crate::eval::comparison::{PairedMetric, SubjectComparison, TestKind, main_metric};
use crate::eval::report::EvaluationReport;
use crate::eval::report::calibration::ChoiceCalibration;
use crate::eval::report::classes::Classes;
use crate::eval::report::format::{NumberFormat, p_value, words};
use crate::eval::report::verdict::power;
use crate::eval::results::{Direction, MetricInfo, TaskResults};
use crate::runs::page::escape::{named, plain};
use crate::stats::bootstrap::Estimate;
use maud::{Markup, html};

/// Returns the anchor of a task's section.
pub fn anchor(report: &EvaluationReport, task: &str) -> String {
    let place = report.results.tasks.iter().position(|t| t.name == task).unwrap_or(0);
    format!("task-{}", place + 1)
}

/// Renders task `i`.
pub fn section(report: &EvaluationReport, i: usize, task: &TaskResults) -> Markup {
    let comparison = &report.comparison.tasks[i];
    let metric = main_metric(task);
    let note = metric.direction().note();
    let format = NumberFormat::of(task, metric);
    let last = report.results.subjects.len() - 1;
    html! {
        section id=(anchor(report, &task.name)) {
            h2 class="task" { (named(&task.name)) }
            p class="note" {
                (crate::report::count(task.items.len() as u64)) " items of " (plain(&task.data))
                @match task.kind.as_str() {
                    "choice" => { ", answered by choosing" }
                    "generate" => { ", answered by writing" }
                    "perplexity" => { ", texts whose tokens are predicted" }
                    "pairs" => { ", pairs of texts of which neither should be preferred" }
                    "extraction" => { ", rows whose continuation is known word for word or not" }
                    "membership" => { ", rows that were trained on beside others" }
                    "exposure" => { ", canaries among texts of their form" }
                    other => { ", " (plain(&words(other))) }
                }
            }
            div class="card" {
                h3 { (plain(&capitalised(&words(&metric.name)))) @if !note.is_empty() { " (" (note) ")" } }
                (bars(format, &rows(report, i, task, metric)))
                @for found in &comparison.subjects { (finding(report, i, found, format)) }
            }
            @if task.metrics.len() > 1 { (all_metrics(report, task)) }
            @for found in comparison.subjects.iter().filter(|found| !found.categories.is_empty()) {
                (tables::categories(&report.comparison.baseline, found, format, metric.direction()))
            }
            @if let Some(found) = report.contamination.get(i) { (tables::contamination(report, found, format)) }
            (calibration(report, task))
            (classes(report, task))
            @for found in &comparison.subjects { (examples::changed(report, task, found)) }
            (examples::worst(report, task, last))
        }
    }
}

/// Returns a bar for each model, and one for each rule that has the same metric.
fn rows(report: &EvaluationReport, i: usize, task: &TaskResults, metric: &MetricInfo) -> Vec<Bar> {
    let several = report.results.subjects.len() > 1;
    let models = report.results.subjects.iter().zip(&task.results).enumerate().filter_map(|(k, (subject, results))| {
        let found = results.estimates.get(&metric.name)?;
        let class = if several && k == 0 { "base" } else { "" };
        Some(Bar { name: subject.name.clone(), class, value: found.value, interval: found.interval })
    });
    // Shares of right answers are compared with every metric that is such a share.
    let scores = || task.results.iter().flat_map(|r| r.answers.iter().filter_map(|a| a.scores.get(&metric.name)));
    let is_share = metric.direction() == Direction::Higher && scores().all(|score| *score == 0.0 || *score == 1.0);
    let rules = report.rules[i].iter().filter(|rule| rule.metric == metric.name || is_share);
    let rules = rules.map(|rule| Bar { name: rule.rule.clone(), class: "rule", value: rule.value, interval: None });
    models.chain(rules).collect()
}

/// Says what the comparison of one model found.
fn finding(report: &EvaluationReport, i: usize, found: &SubjectComparison, format: NumberFormat) -> Markup {
    let task = &report.comparison.tasks[i];
    html! {
        p class="finding-line" {
            (badge(found)) " " (named(&found.subject)) " − " (named(&report.comparison.baseline)) ": "
            (found.difference.map_or("no value".into(), |d| format.difference_estimate(d, found.interval)))
            @if let Some(test) = found.test {
                @let name = match test.kind { TestKind::Mcnemar => "McNemar", TestKind::SignFlip => "random signs" };
                ", p " (p_value(test.p)) " (" (name) "), corrected " (p_value(test.p_corrected))
            }
            @if let Some(changes) = &found.changes {
                @if task.direction == Direction::Neither {
                    "; " (changes.better.len()) " items have a larger score and " (changes.worse.len()) " a smaller one"
                } @else if changes.flips && task.direction == Direction::Higher {
                    "; " (changes.better.len()) " items became right and " (changes.worse.len()) " wrong"
                } @else {
                    "; " (changes.better.len()) " items got better and " (changes.worse.len()) " worse"
                }
            }
            "."
            @if let Some(power) = power(task, found, format) { span class="note" { " " (power) "." } }
        }
    }
}

fn all_metrics(report: &EvaluationReport, task: &TaskResults) -> Markup {
    html! {
        div class="card scroll" {
            table {
                tr { th { "metric" } @for subject in &report.results.subjects { th class="number" { (named(&subject.name)) } } }
                @for metric in &task.metrics {
                    @let format = NumberFormat::of(task, metric);
                    tr {
                        td {
                            (plain(&words(&metric.name)))
                            @if let Some(neutral) = metric.neutral {
                                span class="note" { " " (format.value(neutral)) " is without preference" }
                            } @else { span class="note" { " " (metric.direction().note()) } }
                        }
                        @for (i, results) in task.results.iter().enumerate() {
                            td class="number" {
                                (results.estimates.get(&metric.name).map_or("-".into(), |e| format.estimate(*e)))
                                @if let Some(change) = change(task, metric, i) {
                                    div class="note" { (format.difference_estimate(change.value, change.interval)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns how much larger a metric is than the first model's, paired over items.
fn change(task: &TaskResults, metric: &MetricInfo, subject: usize) -> Option<Estimate> {
    let paired = (subject > 0).then(|| PairedMetric::of(task, metric, subject)).flatten()?;
    let all: Vec<usize> = (0..task.items.len()).collect();
    paired.estimate(&task.name, &all, |first, own| own - first)
}

fn calibration(report: &EvaluationReport, task: &TaskResults) -> Markup {
    let found: Vec<(&str, ChoiceCalibration)> = report
        .results
        .subjects
        .iter()
        .zip(&task.results)
        .filter_map(|(subject, results)| {
            Some((subject.name.as_str(), ChoiceCalibration::of(&task.items, &results.answers)?))
        })
        .collect();
    html! {
        @if !found.is_empty() {
            div class="columns section-gap" { @for (name, found) in &found { (reliability::diagram(name, found)) } }
        }
    }
}

fn classes(report: &EvaluationReport, task: &TaskResults) -> Markup {
    let Some(classes) = Classes::of(task) else { return Markup::default() };
    html! {
        @for (subject, results) in report.results.subjects.iter().zip(&task.results) {
            (tables::confusion(&subject.name, &classes, results))
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + characters.as_str())
}
