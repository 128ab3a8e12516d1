//! Renders answers side by side: items that changed, the largest change first, and the worst answers.

use crate::eval::comparison::{SubjectComparison, main_metric};
use crate::eval::report::EvaluationReport;
use crate::eval::report::format::NumberFormat;
use crate::eval::results::{Direction, ItemAnswer, TaskResults};
use crate::runs::page::escape::named;
use crate::runs::page::markdown::text_with_formulas;
use crate::stats::classification::softmax;
use maud::{Markup, html};

/// Number of items that a list shows.
const SHOWN: usize = 40;
/// Characters of a text that a page shows from its beginning and from its end.
const SHOWN_CHARACTERS: [usize; 2] = [1500, 1500];

/// Renders the lists of one model that is compared with the baseline.
pub fn changed(report: &EvaluationReport, task: &TaskResults, found: &SubjectComparison) -> Markup {
    let Some(changes) = &found.changes else { return Markup::default() };
    let Some(subject) = report.results.subjects.iter().position(|s| s.name == found.subject) else {
        return Markup::default();
    };
    let (worse, better) = match main_metric(task).direction() {
        Direction::Neither => ("have a smaller score", "have a larger score"),
        Direction::Higher if changes.flips => ("became wrong", "became right"),
        _ => ("got a worse score", "got a better score"),
    };
    let columns = [0, subject];
    html! {
        (list(report, task, &columns, &changes.worse, &format!("{} with {}", worse, found.subject)))
        (list(report, task, &columns, &changes.better, &format!("{} with {}", better, found.subject)))
    }
}

/// Renders the worst answers of a model. With choices, those that are wrong with the highest confidence come first.
pub fn worst(report: &EvaluationReport, task: &TaskResults, subject: usize) -> Markup {
    let items = worst_items(task, subject);
    let name = &report.results.subjects[subject].name;
    let columns: Vec<usize> = if subject == 0 { vec![0] } else { vec![0, subject] };
    list(report, task, &columns, &items, &format!("with the worst scores of {name}"))
}

/// Returns the items with the worst scores, or all that are wrong if answers are right or wrong, the worst first. None if neither end
/// of the metric is better.
fn worst_items(task: &TaskResults, subject: usize) -> Vec<usize> {
    let metric = main_metric(task);
    let answers = &task.results[subject].answers;
    if !answers.iter().all(|answer| answer.scores.contains_key(&metric.name)) {
        return Vec::new();
    }
    let Some(sign) = metric.direction().sign() else { return Vec::new() };
    let score = |i: usize| answers[i].scores.get(&metric.name).map_or(0.0, |score| sign * score);
    let confidence = |i: usize| softmax(&answers[i].log_likelihoods).into_iter().fold(0.0, f64::max);
    let best = (0..answers.len()).map(score).fold(f64::NEG_INFINITY, f64::max);
    // If no answer is right, all are wrong.
    let none_right = sign > 0.0 && (0..answers.len()).all(|i| score(i) == 0.0);
    let best = if none_right { f64::MIN_POSITIVE } else { best };
    let mut items: Vec<usize> = (0..answers.len()).filter(|i| score(*i) < best).collect();
    items.sort_by(|a, b| score(*a).total_cmp(&score(*b)).then(confidence(*b).total_cmp(&confidence(*a))));
    items
}

fn list(report: &EvaluationReport, task: &TaskResults, columns: &[usize], items: &[usize], title: &str) -> Markup {
    let count = items.len();
    html! {
        @if count > 0 {
            details class="list" {
                summary {
                    (count) @if count == 1 { " item " } @else { " items " } (named(title))
                    @if count > SHOWN { span class="note" { "the first " (SHOWN) " are shown" } }
                }
                @for item in items.iter().take(SHOWN) { (example(report, task, columns, *item)) }
            }
        }
    }
}

fn example(report: &EvaluationReport, task: &TaskResults, columns: &[usize], item: usize) -> Markup {
    let info = &task.items[item];
    html! {
        div class="example" {
            div class="place" {
                "line " (info.line)
                @if let Some(category) = &info.category { " · " (named(category)) }
            }
            div class="prompt" { (text(&info.prompt)) }
            div class="answers" {
                @for subject in columns {
                    (answer(task, &task.results[*subject].answers[item], &report.results.subjects[*subject].name))
                }
                @if !info.expected.is_empty() {
                    div class="answer expected" {
                        h4 { "Expected" }
                        @for expected in &info.expected { div class="text" dir="auto" { (text(expected)) } }
                    }
                }
            }
        }
    }
}

fn answer(task: &TaskResults, found: &ItemAnswer, name: &str) -> Markup {
    let metric = main_metric(task);
    let score = found.scores.get(&metric.name).copied();
    let class = match score {
        Some(1.0) if metric.direction() == Direction::Higher => "right",
        Some(0.0) if metric.direction() == Direction::Higher => "wrong",
        _ => "",
    };
    let format = NumberFormat::of(task, metric);
    let confidence = softmax(&found.log_likelihoods).into_iter().fold(0.0, f64::max);
    let as_written: Vec<&String> = found.written.iter().filter(|w| w.trim() != found.text.trim()).collect();
    html! {
        div class={ "answer " (class) } {
            h4 {
                (named(name))
                @match class {
                    "right" => { " · right" }
                    "wrong" => { " · wrong" }
                    _ => { @if let Some(score) = score { " · " (format.value(score)) } }
                }
                @if confidence > 0.0 { " · " (format!("{:.0} %", 100.0 * confidence)) " sure" }
                @if found.finish_reason.as_deref() == Some("length") { " · cut off" }
            }
            div class="text" dir="auto" { @if found.text.trim().is_empty() { em { "(nothing)" } } @else { (text(&found.text)) } }
            @for note in &found.notes { div class="note" dir="auto" { (named(note)) } }
            @for written in as_written {
                details { summary { "as written" } div class="text" dir="auto" { (text(written)) } }
            }
        }
    }
}

/// Renders a text of a person or a model; the middle of a long one is left out.
fn text(said: &str) -> Markup {
    let said = said.trim();
    let count = said.chars().count();
    let [front, back] = SHOWN_CHARACTERS;
    if count <= front + back {
        return text_with_formulas(said);
    }
    let cut = |n: usize| said.char_indices().nth(n).map_or(said.len(), |(at, _)| at);
    html! {
        (text_with_formulas(&said[..cut(front)]))
        em { " … " (crate::report::count((count - front - back) as u64)) " characters left out … " }
        (text_with_formulas(&said[cut(count - back)..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, task};

    #[test]
    fn the_worst_items_are_those_that_are_wrong_also_if_all_are() {
        let worst = |scores: &[f64], name: &str| worst_items(&task("t", metric(name), &[scores.to_vec()]), 0);
        assert_eq!(worst(&[1.0, 0.0, 1.0], "acc"), [1]);
        assert_eq!(worst(&[0.0, 0.0], "acc"), [0, 1]);
        assert!(worst(&[1.0, 1.0], "acc").is_empty() && worst(&[0.0, 0.0], "loss").is_empty());
        assert_eq!(worst(&[0.5, 2.0, 0.25], "loss"), [1, 0]);
        let mut made = task("t", metric("extracted"), &[vec![1.0, 0.0]]);
        made.metrics[0].undirected = true;
        assert!(worst_items(&made, 0).is_empty());
    }
}
