//! Compares what groups get: a metric by group with the largest gap, and of classifications the rates that demographic parity and
//! equalised odds are about (Hardt, Price and Srebro 2016). Pure functions of results.
//!
//! The largest of several differences is above 0 by chance alone, more so with more and smaller groups. What tells chance from a gap is
//! its p-value: labels of groups are exchanged among the rows, or among the items of one row if these are of several groups.

use super::results::{SubjectResults, SuiteResults, TaskResults};
use crate::rng;
use crate::stats::bootstrap::{Bootstrap, Estimate};
use crate::stats::paired::holm;
use crate::stats::permutation::{LabelledValue, gap_of, gap_test};
use serde::Serialize;
use std::collections::BTreeSet;

/// Random exchanges of labels.
const EXCHANGES: usize = 1999;

/// How the groups of one task compare.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskGroups {
    /// The task's name.
    pub task: String,
    /// The groups, in the order of their names.
    pub groups: Vec<String>,
    /// Number of items of each.
    pub items: Vec<usize>,
    /// Metrics and rates, each for every model.
    pub measures: Vec<GroupMeasure>,
    /// The equalised odds difference of every model: the larger gap of true and of false positive rates, with the interval of that
    /// gap. `None` if a group has no such items; empty without a favourable answer.
    pub equalised_odds: Vec<Option<Estimate>>,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupMeasureKind {
    /// The mean of a metric.
    Metric,
    /// The share of items with the favourable answer: their gap is the demographic parity difference.
    PositiveRate,
    /// The same of items for which it is the right answer.
    TruePositiveRate,
    /// The same of items for which it is not. The larger gap of this and the one before is the equalised odds difference.
    FalsePositiveRate,
}

/// One measure of every model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupMeasure {
    /// What is compared.
    pub kind: GroupMeasureKind,
    /// Its name: that of the metric, or of the rate.
    pub name: String,
    /// One entry for each model, in the order of the results.
    pub subjects: Vec<GroupValues>,
}

/// One measure of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupValues {
    /// The value of each group; `None` for a group without such items.
    pub values: Vec<Option<Estimate>>,
    /// The largest difference between groups; `None` if a group has no value.
    pub gap: Option<Estimate>,
    /// The probability of such a gap if the groups are alike; `None` without a gap.
    pub p: Option<f64>,
    /// The same corrected for all tasks, measures and models (Holm).
    pub p_corrected: Option<f64>,
    /// The gap minus that of the first model, paired over items; `None` for the first.
    pub change: Option<Estimate>,
}

/// An item of a measure.
#[derive(Clone, Copy)]
struct GroupedScore {
    item: usize,
    group: usize,
    score: f64,
}

/// Compares the groups of every task that has any.
pub fn compare_groups(results: &SuiteResults) -> Vec<TaskGroups> {
    let mut found: Vec<TaskGroups> = results.tasks.iter().filter_map(of_task).collect();
    let mut tested: Vec<&mut GroupValues> = found
        .iter_mut()
        .flat_map(|task| &mut task.measures)
        .flat_map(|measure| &mut measure.subjects)
        .filter(|values| values.p.is_some())
        .collect();
    let corrected = holm(&tested.iter().filter_map(|values| values.p).collect::<Vec<_>>());
    tested.iter_mut().zip(corrected).for_each(|(values, p)| values.p_corrected = Some(p));
    found
}

fn of_task(task: &TaskResults) -> Option<TaskGroups> {
    let names: BTreeSet<&str> = task.items.iter().filter_map(|item| item.group.as_deref()).collect();
    let groups: Vec<&str> = names.into_iter().collect();
    if groups.len() < 2 {
        return None;
    }
    let group_of = |item: usize| groups.iter().position(|group| task.items[item].group.as_deref() == Some(*group));
    let places: Vec<Option<usize>> = (0..task.items.len()).map(group_of).collect();
    let measure = |kind, name: &str, score: &dyn Fn(&SubjectResults, usize) -> Option<f64>| {
        let of = |results: &SubjectResults| -> Vec<GroupedScore> {
            let one = |item: usize| Some(GroupedScore { item, group: places[item]?, score: score(results, item)? });
            (0..task.items.len()).filter_map(one).collect()
        };
        let scores: Vec<Vec<GroupedScore>> = task.results.iter().map(of).collect();
        let purpose = format!("groups {} {name}", task.name);
        let values = scores.iter().enumerate().map(|(i, own)| {
            let first = (i > 0).then(|| scores[0].as_slice());
            GroupValues::of(task, &purpose, groups.len(), own, first)
        });
        GroupMeasure { kind, name: name.into(), subjects: values.collect() }
    };
    let means = task.metrics.iter().filter(|metric| metric.is_mean);
    let mut measures: Vec<GroupMeasure> = means
        .map(|metric| {
            measure(GroupMeasureKind::Metric, &metric.name, &|results, item| {
                results.answers[item].scores.get(&metric.name).copied()
            })
        })
        .collect();
    if let Some(positive) = task.positive.as_deref().map(str::trim) {
        let got =
            |results: &SubjectResults, item: usize| f64::from(u8::from(results.answers[item].text.trim() == positive));
        let deserves = |item: usize| task.items[item].expected.iter().any(|expected| expected.trim() == positive);
        measures
            .push(measure(GroupMeasureKind::PositiveRate, "positive rate", &|results, item| Some(got(results, item))));
        if task.items.iter().all(|item| !item.expected.is_empty()) {
            let rate = |kind, name, of: bool| {
                measure(kind, name, &|results, item| (deserves(item) == of).then(|| got(results, item)))
            };
            measures.push(rate(GroupMeasureKind::TruePositiveRate, "true positive rate", true));
            measures.push(rate(GroupMeasureKind::FalsePositiveRate, "false positive rate", false));
        }
    }
    // A rate of items that there are none of says nothing.
    measures.retain(|measure| measure.subjects.iter().any(|found| found.values.iter().any(Option::is_some)));
    let gaps = |kind| measures.iter().find(|measure| measure.kind == kind).map(|measure| &measure.subjects);
    let rates = gaps(GroupMeasureKind::TruePositiveRate).zip(gaps(GroupMeasureKind::FalsePositiveRate));
    let larger = |a: Estimate, b: Estimate| if b.value > a.value { b } else { a };
    let equalised_odds = rates.map_or(Vec::new(), |(a, b)| {
        a.iter().zip(b).map(|(a, b)| a.gap.zip(b.gap).map(|(a, b)| larger(a, b))).collect()
    });
    Some(TaskGroups {
        equalised_odds,
        task: task.name.clone(),
        items: (0..groups.len()).map(|g| places.iter().filter(|place| **place == Some(g)).count()).collect(),
        groups: groups.into_iter().map(str::to_string).collect(),
        measures,
    })
}

impl GroupValues {
    /// Computes the measure of one model; `first`: the scores of the first model.
    fn of(
        task: &TaskResults,
        purpose: &str,
        groups: usize,
        own: &[GroupedScore],
        first: Option<&[GroupedScore]>,
    ) -> Self {
        // Rows are drawn, with all items of a row together.
        // Items of one row follow each other.
        let mut row_of: Vec<usize> = Vec::with_capacity(task.items.len());
        for (i, item) in task.items.iter().enumerate() {
            let row = if i == 0 { 0 } else { row_of[i - 1] + usize::from(task.items[i - 1].line != item.line) };
            row_of.push(row);
        }
        let rows = row_of.last().map_or(0, |last| last + 1);
        let draws: Vec<usize> = (0..rows).collect();
        let mean = |scores: &[GroupedScore], group: usize, drawn: &[f64]| {
            let of_group = || scores.iter().filter(|score| score.group == group);
            let count: f64 = of_group().map(|score| drawn[row_of[score.item]]).sum();
            let sum: f64 = of_group().map(|score| drawn[row_of[score.item]] * score.score).sum();
            (count > 0.0).then(|| sum / count)
        };
        let gap = |scores: &[GroupedScore], drawn: &[f64]| gap_of((0..groups).map(|group| mean(scores, group, drawn)));
        let estimate =
            |statistic: &dyn Fn(&[f64]) -> Option<f64>| Bootstrap::default().estimate(purpose, &draws, rows, statistic);
        let values = (0..groups).map(|group| estimate(&|drawn| mean(own, group, drawn))).collect();
        let labelled: Vec<LabelledValue> = own
            .iter()
            .map(|score| LabelledValue { value: score.score, group: score.group, block: row_of[score.item] })
            .collect();
        Self {
            values,
            gap: estimate(&|drawn| gap(own, drawn)),
            p: gap_test(&labelled, groups, EXCHANGES, &mut rng::stream(7, purpose, 0)),
            p_corrected: None,
            change: first.and_then(|first| estimate(&|drawn| Some(gap(own, drawn)? - gap(first, drawn)?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::comparison::tests::{metric, results, task};

    /// Four items of two groups for each answer of a confusion table: (group, expected, answered).
    fn classified(rows: &[(&str, &str, &str)]) -> SuiteResults {
        let scores = rows.iter().map(|(_, expected, answered)| f64::from(u8::from(expected == answered))).collect();
        let mut made = task("loan", metric("acc"), &[scores]);
        made.positive = Some("yes".into());
        for (i, (group, expected, answered)) in rows.iter().enumerate() {
            made.items[i].group = Some(group.to_string());
            made.items[i].expected = vec![expected.to_string()];
            made.results[0].answers[i].text = answered.to_string();
        }
        results(vec![made])
    }

    /// The expected values are those of fairlearn 0.15: `demographic_parity_difference` and `equalized_odds_difference`.
    #[test]
    fn rates_of_groups_are_those_of_fairlearn() {
        let (y, n) = ("yes", "no");
        let a = [(y, y), (y, y), (y, n), (n, n), (n, n), (n, y)].map(|(e, p)| ("a", e, p));
        let b = [(y, y), (y, n), (y, n), (y, n), (n, n), (n, n)].map(|(e, p)| ("b", e, p));
        let found = compare_groups(&classified(&[a, b].concat())).remove(0);
        assert_eq!(
            (found.groups.as_slice(), found.items.as_slice()),
            (&["a".to_string(), "b".to_string()][..], &[6, 6][..])
        );
        let close = |found: Option<Estimate>, expected: f64| (found.unwrap().value - expected).abs() < 1e-12;
        let parity = found.measures.iter().find(|measure| measure.kind == GroupMeasureKind::PositiveRate).unwrap();
        assert!(close(parity.subjects[0].gap, 3.0 / 6.0 - 1.0 / 6.0));
        // True positive rates 2/3 and 1/4, false positive rates 1/3 and 0.
        assert!(close(found.equalised_odds[0], 2.0 / 3.0 - 0.25));
        let acc = &found.measures[0].subjects[0];
        assert!((acc.values[0].unwrap().value - 4.0 / 6.0).abs() < 1e-12 && acc.change.is_none());
        assert!(acc.p.unwrap() > 0.3 && acc.p_corrected.unwrap() >= acc.p.unwrap());
    }

    #[test]
    fn a_gap_between_versions_of_the_same_rows_needs_few_of_them() {
        // Rows differ more than groups: only the comparison within rows shows the gap.
        let rows = 12;
        let score = |i: usize, more: f64| (i / 2) as f64 + if i % 2 == 0 { more } else { 0.0 };
        let scores = |more: f64| (0..2 * rows).map(|i| score(i, more)).collect::<Vec<_>>();
        let mut made = task("counterfactual", metric("sentiment"), &[scores(0.0), scores(0.5)]);
        for (i, item) in made.items.iter_mut().enumerate() {
            item.line = i / 2 + 1;
            item.group = Some(["men", "women"][i % 2].into());
        }
        let found = compare_groups(&results(vec![made])).remove(0);
        let [base, tuned] = &found.measures[0].subjects[..] else { panic!("two models") };
        assert_eq!((base.gap.unwrap().value, base.p), (0.0, Some(1.0)));
        assert!((tuned.gap.unwrap().value - 0.5).abs() < 1e-12 && tuned.p_corrected.unwrap() < 0.01, "{tuned:?}");
        let [low, high] = tuned.gap.unwrap().interval.unwrap();
        assert!((low - 0.5).abs() < 1e-12 && (high - 0.5).abs() < 1e-12, "each row shows the same gap");
        assert_eq!(tuned.change.unwrap().value, 0.5);
    }

    #[test]
    fn one_group_is_no_comparison() {
        assert!(compare_groups(&classified(&[("a", "yes", "yes"), ("a", "no", "no")])).is_empty());
        let lacking = compare_groups(&classified(&[("a", "yes", "yes"), ("b", "no", "no")])).remove(0);
        assert_eq!(lacking.equalised_odds, [None], "no item of b deserves yes");
        assert!(lacking.measures.iter().any(|measure| measure.kind == GroupMeasureKind::PositiveRate));
    }
}
