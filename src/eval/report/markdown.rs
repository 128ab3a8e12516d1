//! Writes a report as Markdown, for a model card.

use super::EvaluationReport;
use super::format::{NumberFormat, p_value, words};
use super::verdict::{gate_words, power, sentences};
use super::{groups, losses};
use crate::characters::printable;
use crate::eval::comparison::{Verdict, main_metric};
use crate::eval::contamination::{Contamination, Overlap};
use std::fmt::Write;

/// Returns the report as Markdown.
pub fn render(report: &EvaluationReport) -> String {
    let mut out = format!("## Evaluation: {}\n\n", escaped(report.title()));
    for sentence in sentences(report) {
        let _ = writeln!(out, "{}\n", escaped(&sentence));
    }
    out += &results(report);
    let shown: Vec<String> = shown_differences(report);
    if !shown.is_empty() {
        let _ = writeln!(out, "\n{}", shown.join("\n"));
    }
    let lost: Vec<Vec<String>> = losses::rows(report).into_iter().map(|row| row.to_vec()).collect();
    if !lost.is_empty() {
        let _ = writeln!(out, "\n### What was forgotten\n");
        losses::sentences(report).iter().for_each(|sentence| out += &format!("{}\n\n", escaped(sentence)));
        out += &markdown_table(&losses::COLUMNS, &lost);
    }
    let by_group = groups::rows(report);
    if !by_group.is_empty() {
        let _ = writeln!(out, "\n### What groups get\n");
        out += &markdown_table(groups::columns(report), &by_group);
        let _ = writeln!(out, "\n{}", groups::NOTE);
    }
    if !report.gates.is_empty() {
        out += "\n| gate | model | value − bound (95 %) | result |\n|---|---|---|---|\n";
        for gate in &report.gates {
            let margin = report.format_of(gate).difference_estimate(gate.margin.value, gate.margin.interval);
            let _ = writeln!(
                out,
                "| `{}` | {} | {margin} | {} |",
                gate.gate.replace('|', "\\|"),
                escaped(&gate.subject),
                gate_words(gate)
            );
        }
    }
    out += &rules(report);
    for line in overlap_lines(report) {
        let _ = write!(out, "\n- {}", escaped(&line));
    }
    if !report.contamination.is_empty() {
        out.push('\n');
    }
    out += "\nIntervals are 95 % bootstrap intervals over items; differences are paired. P-values are corrected for all comparisons (Holm).\n";
    out
}

fn markdown_table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let titles = line(columns.iter().map(|title| title.to_string()).collect());
    let rule = format!("|{}\n", "---|".repeat(columns.len()));
    titles + &rule + &rows.iter().map(|row| line(row.iter().map(|cell| escaped(cell)).collect())).collect::<String>()
}

fn results(report: &EvaluationReport) -> String {
    let compared = !report.comparison.subjects().is_empty();
    let mut out = String::from("| task | items | metric | model | value (95 %) |");
    out += if compared { " difference (95 %) | p | verdict |\n" } else { "\n" };
    out += "|---|---|---|---|---|";
    out += if compared { "---|---|---|\n" } else { "\n" };
    for (task, results) in report.comparison.tasks.iter().zip(&report.results.tasks) {
        let format = NumberFormat::of(results, main_metric(results));
        for (i, subject) in report.results.subjects.iter().enumerate() {
            let value = results.results[i].estimates.get(&task.metric).map_or("-".into(), |e| format.estimate(*e));
            let note = match task.direction.note() {
                "" => String::new(),
                note => format!(" ({note})"),
            };
            let _ = write!(
                out,
                "| {} | {} | {}{note} | {} | {value} |",
                escaped(&task.task),
                task.rows,
                escaped(&words(&task.metric)),
                escaped(&subject.name)
            );
            match i.checked_sub(1).and_then(|i| task.subjects.get(i)) {
                Some(found) => {
                    let difference =
                        found.difference.map_or("-".into(), |d| format.difference_estimate(d, found.interval));
                    let p = found.test.map_or("-".into(), |test| p_value(test.p_corrected));
                    let _ = write!(out, " {difference} | {p} | {} |", verdict_words(found.verdict));
                }
                None if compared => out += "  |  | baseline |",
                None => (),
            }
            out.push('\n');
        }
    }
    out
}

/// Returns the name of a verdict.
pub fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Changed => "changed",
        Verdict::NotShown => "no difference shown",
        Verdict::NotTested => "not tested",
    }
}

/// Says for each task which differences it could have shown.
fn shown_differences(report: &EvaluationReport) -> Vec<String> {
    let mut lines = Vec::new();
    for (task, results) in report.comparison.tasks.iter().zip(&report.results.tasks) {
        let format = NumberFormat::of(results, main_metric(results));
        for found in &task.subjects {
            lines.extend(
                power(task, found, format)
                    .map(|power| format!("- {}, {}: {power}.", escaped(&task.task), escaped(&found.subject))),
            );
        }
    }
    lines
}

fn rules(report: &EvaluationReport) -> String {
    if report.rules.iter().all(Vec::is_empty) {
        return String::new();
    }
    let mut out = String::from("\n| task | rule without a model | metric | value |\n|---|---|---|---|\n");
    for (task, rules) in report.results.tasks.iter().zip(&report.rules) {
        for rule in rules {
            let format = NumberFormat::of_rule(task, rule);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                escaped(&task.name),
                escaped(&rule.rule),
                escaped(&words(&rule.metric)),
                format.value(rule.value)
            );
        }
    }
    out
}

/// Says for each task how many items share text with training rows.
pub fn overlap_lines(report: &EvaluationReport) -> Vec<String> {
    let tasks = report.results.tasks.iter().zip(&report.contamination);
    let line = |task: &str, found: &Contamination| {
        let (overlapping, short) = (found.count(Overlap::Overlapping), found.count(Overlap::TooShort));
        let short = if short > 0 { format!("; {short} are too short to tell") } else { String::new() };
        format!(
            "{task}: {overlapping} of {} items share {} words in a row with a training row{short}",
            found.items.len(),
            found.run
        )
    };
    tasks.flat_map(|(task, found)| found.iter().map(move |found| line(&task.name, found))).collect()
}

/// Returns a text of a person or model for a line or cell of Markdown: on one line, without markup.
fn escaped(text: &str) -> String {
    let line = printable(text).replace(['\n', '\t'], " ");
    let mut out = String::new();
    for c in line.chars() {
        if ['\\', '`', '*', '_', '|', '<', '>', '[', ']', '#'].contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
