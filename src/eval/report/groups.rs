//! What groups get, in the cells of a table.

use super::EvaluationReport;
use super::format::{NumberFormat, p_value, words};
use crate::eval::groups::{GroupMeasure, GroupMeasureKind, GroupValues, TaskGroups};
use crate::stats::bootstrap::Estimate;

/// Titles of the columns of [`rows`]; the last one is for several models only.
pub const COLUMNS: [&str; 7] =
    ["task", "measure", "model", "groups (95 %)", "largest gap (95 %)", "p", "gap - first model (95 %)"];

/// What a number of a rate is called where it is a gap of its own right.
fn name(measure: &GroupMeasure) -> String {
    match measure.kind {
        GroupMeasureKind::PositiveRate => "favourable answers (demographic parity)".into(),
        GroupMeasureKind::TruePositiveRate => "favourable where right".into(),
        GroupMeasureKind::FalsePositiveRate => "favourable where wrong".into(),
        GroupMeasureKind::Metric => words(&measure.name),
    }
}

fn format_of(report: &EvaluationReport, groups: &TaskGroups, measure: &GroupMeasure) -> NumberFormat {
    let task = report.results.tasks.iter().find(|task| task.name == groups.task);
    let metric = task.and_then(|task| Some((task, task.metrics.iter().find(|metric| metric.name == measure.name)?)));
    match (measure.kind, metric) {
        (GroupMeasureKind::Metric, Some((task, metric))) => NumberFormat::of(task, metric),
        (GroupMeasureKind::Metric, None) => NumberFormat::Plain,
        _ => NumberFormat::Share,
    }
}

/// Returns the cells of a table: a row for each measure and model of each task.
pub fn rows(report: &EvaluationReport) -> Vec<Vec<String>> {
    let several = report.results.subjects.len() > 1;
    let mut found = Vec::new();
    for groups in &report.groups {
        for measure in &groups.measures {
            let format = format_of(report, groups, measure);
            for (subject, values) in report.results.subjects.iter().zip(&measure.subjects) {
                let mut row = vec![groups.task.clone(), name(measure), subject.name.clone()];
                row.extend(cells(groups, values, format));
                if several {
                    let change = |e: Estimate| format.difference_estimate(e.value, e.interval);
                    row.push(values.change.map_or(String::new(), change));
                }
                found.push(row);
            }
        }
        for (subject, odds) in report.results.subjects.iter().zip(&groups.equalised_odds) {
            let gap = odds.map_or("-".into(), |gap| gap_cell(gap, NumberFormat::Share));
            let name = "equalised odds: the larger gap";
            let mut row = [groups.task.as_str(), name, &subject.name, "", &gap, ""].map(String::from).to_vec();
            row.extend(several.then(String::new));
            found.push(row);
        }
    }
    found
}

fn gap_cell(gap: Estimate, format: NumberFormat) -> String {
    format.size(gap.value) + &gap.interval.map_or(String::new(), |ends| format!(" ({})", format.interval(ends)))
}

fn cells(groups: &TaskGroups, values: &GroupValues, format: NumberFormat) -> [String; 3] {
    let of = |(name, value): (&String, &Option<Estimate>)| {
        format!("{name} {}", value.map_or("-".into(), |estimate| format.estimate(estimate)))
    };
    [
        groups.groups.iter().zip(&values.values).map(of).collect::<Vec<_>>().join(", "),
        values.gap.map_or("-".into(), |gap| gap_cell(gap, format)),
        values.p_corrected.map_or("-".into(), p_value),
    ]
}

/// Returns the titles of the columns.
pub fn columns(report: &EvaluationReport) -> &'static [&'static str] {
    if report.results.subjects.len() > 1 { &COLUMNS } else { &COLUMNS[..6] }
}

/// Says how the gaps are to be read.
pub const NOTE: &str = "The largest of several differences is above 0 by chance alone; p says how often chance gives such a gap, \
                        corrected for all gaps here (Holm).";
