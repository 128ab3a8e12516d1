//! Renders `report.html`: what the evaluation says first, then gates, the tasks one by one, and how the numbers were computed.
//!
//! `task`: the section of a task. `sections`: what was forgotten, what groups get. `bars`, `reliability`: its plots. `tables`: classes and categories. `examples`: answers side by side.

mod bars;
mod examples;
mod reliability;
mod sections;
mod tables;
mod task;

use super::EvaluationReport;
use super::format::{NumberFormat, p_value, words};
use super::markdown::verdict_words;
use super::verdict::{gate_words, sentences};
use crate::eval::comparison::{GateOutcome, SubjectComparison, TaskComparison, Verdict, main_metric};
use crate::eval::results::{SuiteResults, TaskResults};
use crate::runs::page::document::styled_document;
use crate::runs::page::escape::{named, plain};
use maud::{Markup, html};

const STYLE: &str = include_str!("report.css");

/// Returns the page as HTML.
pub fn render(report: &EvaluationReport) -> String {
    let body = html! {
        (header(report))
        @if !report.gates.is_empty() { section { h2 { "Gates" } (gates(report)) } }
        section { h2 { "Results" } (overview(report)) }
        (sections::forgetting(report))
        (sections::group_tables(report))
        @for (i, results) in report.results.tasks.iter().enumerate() { (task::section(report, i, results)) }
        (explanation(report))
        footer {
            "Written by ft " (env!("CARGO_PKG_VERSION")) " from the results of " (plain(&report.results.suite))
            ". This page loads nothing and sends nothing."
        }
    };
    styled_document(report.title(), STYLE, &body.into_string())
}

fn header(report: &EvaluationReport) -> Markup {
    html! {
        header {
            h1 { (named(report.title())) }
            p class="sub" { (subjects(&report.results)) }
        }
        div class="verdict" { @for sentence in sentences(report) { p { (plain(&sentence)) } } (failed_gates(report)) }
    }
}

/// Says which models these are.
fn subjects(results: &SuiteResults) -> Markup {
    html! {
        @for (i, subject) in results.subjects.iter().enumerate() {
            @if i > 0 { " · " }
            b { (named(&subject.name)) }
            @if i == 0 && results.subjects.len() > 1 { " (baseline)" }
            " "
            (named(subject.adapter.as_deref().unwrap_or(&subject.model)))
            @if subject.adapter.is_some() { " on " (named(&subject.model)) }
        }
    }
}

fn failed_gates(report: &EvaluationReport) -> Markup {
    let failed = report.gates.iter().filter(|gate| !gate.holds).count();
    let uncertain = report.gates.iter().filter(|gate| gate.holds && !gate.certain).count();
    let total = report.gates.len();
    html! {
        @if total > 0 {
            p class={ "gates " @if failed > 0 { "bad" } @else if uncertain > 0 { "warn" } @else { "good" } } {
                @if failed > 0 { (failed) " of " (total) " gates " @if failed == 1 { "does" } @else { "do" } " not hold." }
                @else if uncertain > 0 { "All " (total) " gates hold, " (uncertain) " of them not with certainty." }
                @else { "All " (total) " gates hold." }
            }
        }
    }
}

fn gates(report: &EvaluationReport) -> Markup {
    let row = |outcome: &GateOutcome| {
        let format = report.format_of(outcome);
        let class = match (outcome.holds, outcome.certain) {
            (true, true) => "good",
            (true, false) => "warn",
            (false, _) => "bad",
        };
        html! {
            tr {
                td { span class={ "badge " (class) } { (gate_words(outcome)) } }
                td { code { (plain(&outcome.gate)) } }
                td class="model" { (named(&outcome.subject)) }
                td class="number" { (format.value(outcome.value)) }
                td class="number" { (format.value(outcome.bound)) }
                td class="number" { (format.difference_estimate(outcome.margin.value, outcome.margin.interval)) }
            }
        }
    };
    html! {
        div class="card scroll" {
            table {
                tr {
                    th { "result" }
                    th { "gate" }
                    th { "model" }
                    th class="number" { "value" }
                    th class="number" { "bound" }
                    th class="number" { "value − bound (95 %)" }
                }
                @for outcome in &report.gates { (row(outcome)) }
            }
        }
    }
}

/// Renders a table of all tasks: values, differences and verdicts.
fn overview(report: &EvaluationReport) -> Markup {
    let compared = !report.comparison.subjects().is_empty();
    html! {
        div class="card scroll" {
            table class="overview" {
                tr {
                    th { "task" }
                    th { "model" }
                    @if compared { th { "verdict" } }
                    th class="number" { "value (95 %)" }
                    @if compared {
                        th class="number" { "difference (95 %)" }
                        th class="number" { "p" }
                    }
                }
                @for (task, results) in report.comparison.tasks.iter().zip(&report.results.tasks) {
                    (overview_rows(report, task, results, compared))
                }
            }
        }
    }
}

fn overview_rows(report: &EvaluationReport, task: &TaskComparison, results: &TaskResults, compared: bool) -> Markup {
    let format = NumberFormat::of(results, main_metric(results));
    let value = |i: usize| results.results[i].estimates.get(&task.metric).map_or("-".into(), |e| format.estimate(*e));
    let last = report.results.subjects.len() - 1;
    let is_last = report.comparison.tasks.last().is_some_and(|other| other.task == task.task);
    html! {
        @for (i, subject) in report.results.subjects.iter().enumerate() {
            @let found = i.checked_sub(1).and_then(|i| task.subjects.get(i));
            tr class=[(i < last).then_some("joined")] {
                @if i == 0 {
                    td class={ "of-task" @if is_last { " last" } } rowspan=(last + 1) {
                        a href={ "#" (task::anchor(report, &task.task)) } { (named(&task.task)) }
                        div class="note" {
                            (plain(&words(&task.metric))) ", " (crate::report::count(task.rows as u64)) " items"
                            @if !task.direction.note().is_empty() { ", " (task.direction.note()) }
                        }
                    }
                }
                td class="model" { (named(&subject.name)) }
                @if compared {
                    td { @if let Some(found) = found { (badge(found)) } @else { span class="note" { "baseline" } } }
                }
                td class="number" { (value(i)) }
                @if compared {
                    td class="number" {
                        @if let Some(found) = found {
                            (found.difference.map_or("-".into(), |d| format.difference_estimate(d, found.interval)))
                        }
                    }
                    td class="number" {
                        @if let Some(found) = found { (found.test.map_or("-".into(), |test| p_value(test.p_corrected))) }
                    }
                }
            }
        }
    }
}

/// Renders a verdict as a coloured word.
fn badge(found: &SubjectComparison) -> Markup {
    let (class, words) = match found.verdict {
        better @ Verdict::Better => ("good", verdict_words(better)),
        worse @ Verdict::Worse => ("bad", verdict_words(worse)),
        Verdict::Changed => ("warn", verdict_words(Verdict::Changed)),
        other => ("soft", verdict_words(other)),
    };
    html! { span class={ "badge " (class) } { (words) } }
}

/// Says how the numbers were computed and how to read them.
fn explanation(report: &EvaluationReport) -> Markup {
    let tests = report.comparison.tasks.iter().flat_map(|t| &t.subjects).filter(|s| s.test.is_some()).count();
    html! {
        section {
            h2 { "How to read this" }
            div class="card" {
                p {
                    "A value in parentheses is a 95 % interval: the items are a sample, and other items of the same kind would give values in "
                    "this range. Intervals of differences resample items, with the answers of both models to the same item kept together, so "
                    "they are narrower than the intervals of the values suggest."
                }
                @if tests > 0 {
                    p {
                        "“Better” and “worse” are said, and “changed” where neither end of a metric is better, if the corrected p-value is below 0.05: McNemar's exact test where answers are right or "
                        "wrong, a randomisation test of signs where they are graded, corrected for the " (tests)
                        @if tests == 1 { " comparison" } @else { " comparisons" }
                        " on this page (Holm). “No difference shown” does not say that there is none: each task says how large a difference its "
                        "items can show."
                    }
                    p { "Tables by category are for looking: their intervals are not corrected for the number of categories." }
                }
                @if !report.gates.is_empty() {
                    p {
                        "A gate holds if the value meets it. It is certain if the whole interval says the same."
                    }
                }
            }
        }
    }
}
