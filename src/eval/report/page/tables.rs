//! Renders tables of classes and of categories.

use crate::eval::comparison::SubjectComparison;
use crate::eval::contamination::{Contamination, Overlap};
use crate::eval::report::EvaluationReport;
use crate::eval::report::classes::Classes;
use crate::eval::report::format::NumberFormat;
use crate::eval::results::{Direction, SubjectResults};
use crate::runs::page::escape::named;
use crate::stats::bootstrap::Estimate;
use maud::{Markup, html};

/// Renders which class was answered for which.
pub fn confusion(name: &str, classes: &Classes, results: &SubjectResults) -> Markup {
    let found = classes.confusion(results);
    let n = classes.names.len();
    let others = (0..n).any(|expected| found.count(expected, n) > 0);
    let columns = if others { n + 1 } else { n };
    let row_total = |expected: usize| (0..=n).map(|predicted| found.count(expected, predicted)).sum::<usize>();
    let f1 = |x: Option<f64>| x.map_or("-".into(), |x| format!("{:.1} %", 100.0 * x));
    let cell = |expected: usize, predicted: usize| {
        let (count, total) = (found.count(expected, predicted), row_total(expected).max(1));
        let tone = if expected == predicted { "right" } else { "wrong" };
        html! {
            @if count == 0 { td class="none" { "·" } } @else {
                td class={ "shade " (tone) @if expected == predicted { " hit" } } style=(format!("--share:{:.3}", count as f64 / total as f64)) { (count) }
            }
        }
    };
    html! {
        div class="card" {
            h3 { "Answers of " (named(name)) " by class" }
            p class="note" {
                "rows: the expected class, most frequent first; columns: the answer. F1: " (f1(found.macro_f1()))
                " as a mean of classes, " (f1(found.weighted_f1())) " weighted by their items"
            }
            div class="scroll" {
                table class="confusion" {
                    tr {
                        th {}
                        @for i in 0..n { th { (i + 1) } }
                        @if others { th { "other" } }
                    }
                    @for (i, class) in classes.names.iter().enumerate() {
                        tr {
                            th class="row" { (i + 1) ". " (named(class)) }
                            @for predicted in 0..columns { (cell(i, predicted)) }
                        }
                    }
                }
            }
        }
    }
}

/// Renders how a model compares with the baseline by category.
pub fn categories(baseline: &str, found: &SubjectComparison, format: NumberFormat, direction: Direction) -> Markup {
    let class = |ends: [f64; 2]| {
        let better = ends.map(|end| direction.sign().unwrap_or(0.0) * end);
        match (better.iter().all(|end| *end > 0.0), better.iter().all(|end| *end < 0.0)) {
            (true, _) => Some("good"),
            (_, true) => Some("bad"),
            _ => None,
        }
    };
    html! {
        div class="card" {
            h3 { "By category: " (named(&found.subject)) " and " (named(baseline)) }
            div class="scroll" {
                table {
                    tr {
                        th { "category" }
                        th class="number" { "items" }
                        th class="number" { (named(baseline)) }
                        th class="number" { (named(&found.subject)) }
                        th class="number" { "difference (95 %)" }
                    }
                    @for category in &found.categories {
                        @let tone = category.difference.interval.and_then(class);
                        tr {
                            td { (named(&category.category)) }
                            td class="number" { (category.rows) }
                            td class="number" { (format.value(category.baseline_value)) }
                            td class="number" { (format.value(category.value)) }
                            td class="number" {
                                @let text = format.difference_estimate(category.difference.value, category.difference.interval);
                                @if let Some(tone) = tone { span class={ "tone " (tone) } { (text) } } @else { (text) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Renders how many items share text with training rows by each rule, and the scores with and without them.
pub fn contamination(report: &EvaluationReport, found: &[Contamination], format: NumberFormat) -> Markup {
    html! {
        div class="card" {
            h3 { "Overlap with training rows" }
            @for found in found { (overlap(report, found, format)) }
            p class="note" { "A run that is in more than ten rows or items is a phrase or a template and does not count." }
        }
    }
}

fn overlap(report: &EvaluationReport, found: &Contamination, format: NumberFormat) -> Markup {
    let count = |state| found.count(state);
    let (overlapping, short) = (count(Overlap::Overlapping), count(Overlap::TooShort));
    let value = |e: Option<Estimate>| e.map_or("-".into(), |e| format.estimate(e));
    let difference = |e: Option<Estimate>| e.map_or(String::new(), |e| format.difference_estimate(e.value, e.interval));
    html! {
        p {
            (overlapping) " of " (found.items.len()) " items share a run of " (found.run) " words with a training row"
            @if short > 0 { "; " (short) " are too short to tell" }
            "."
        }
        @if overlapping > 0 && !found.scores.is_empty() {
            div class="scroll" {
                table {
                    tr {
                        th { "model" }
                        th class="number" { "all items" }
                        th class="number" { "without overlapping items" }
                        th class="number" { "overlapping items" }
                        th class="number" { "difference without them (95 %)" }
                    }
                    @for (subject, scores) in report.results.subjects.iter().zip(&found.scores) {
                        tr {
                            td class="model" { (named(&subject.name)) }
                            td class="number" { (value(scores.all)) }
                            td class="number" { (value(scores.without)) }
                            td class="number" { (value(scores.overlapping)) }
                            td class="number" { (difference(scores.difference_without)) }
                        }
                    }
                }
            }
        }
    }
}
