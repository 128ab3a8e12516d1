//! One metric of the same questions over dates, and whether its level changed.

use super::index::EvaluationEntry;
use crate::eval::results::{Direction, MetricInfo};
use crate::rng;
use crate::stats::bootstrap::Estimate;
use crate::stats::change_point::{ChangePoint, pettitt};
use crate::stats::paired::holm;
use serde::Serialize;
use std::path::PathBuf;

/// Random orders that the test of a change tries.
const ORDERS: usize = 9999;

/// One metric over dates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricSeries {
    /// The suite's title, or its file.
    pub suite: String,
    /// The task.
    pub task: String,
    /// A hash of its questions: of two series with the same names, these differ.
    pub questions: String,
    /// Number of items.
    pub items: usize,
    /// The metric.
    pub metric: String,
    /// Which values are better.
    pub direction: Direction,
    /// The values in the order of their dates.
    pub points: Vec<SeriesPoint>,
    /// Where the level most likely changed (Pettitt 1979); `None` for fewer than five values.
    pub change: Option<ChangePoint>,
    /// The p-value of the change, corrected for all series (Holm).
    pub p_corrected: Option<f64>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesPoint {
    /// When the evaluation ended.
    pub evaluated: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The model.
    pub subject: String,
    /// The value with its interval over items.
    pub estimate: Estimate,
}

/// Which series are wanted.
#[derive(Debug, Clone, Default)]
pub struct SeriesFilter<'a> {
    /// The task; `None`: all.
    pub task: Option<&'a str>,
    /// The metric; `None`: the main one of each task.
    pub metric: Option<&'a str>,
    /// The model; `None`: the last one of each evaluation, which is the tuned one.
    pub subject: Option<&'a str>,
}

/// Collects the series of evaluations, which are in the order of their dates.
pub fn series(entries: &[EvaluationEntry], filter: &SeriesFilter) -> Vec<MetricSeries> {
    let mut found: Vec<MetricSeries> = Vec::new();
    for entry in entries {
        let Some(subject) = entry.subject(filter.subject) else { continue };
        for task in entry.tasks.iter().filter(|task| filter.task.is_none_or(|name| name == task.name)) {
            let name = filter.metric.unwrap_or(&task.main_metric);
            let Some(estimate) = task.estimates.get(subject).and_then(|of| of.get(name)) else { continue };
            let point = SeriesPoint {
                evaluated: entry.evaluated.clone(),
                folder: entry.folder.clone(),
                subject: entry.subjects[subject].name.clone(),
                estimate: *estimate,
            };
            let same = |series: &&mut MetricSeries| {
                series.task == task.name && series.metric == name && series.questions == task.questions
            };
            match found.iter_mut().find(same) {
                Some(series) => series.points.push(point),
                None => found.push(MetricSeries {
                    suite: entry.title.clone().unwrap_or_else(|| entry.suite.clone()),
                    task: task.name.clone(),
                    questions: task.questions.clone(),
                    items: task.items,
                    metric: name.to_string(),
                    direction: (task.metrics.iter().find(|m| m.name == name))
                        .map_or(Direction::Neither, MetricInfo::direction),
                    points: vec![point],
                    change: None,
                    p_corrected: None,
                }),
            }
        }
    }
    for series in &mut found {
        let purpose = format!("order of {} {} {}", series.task, series.metric, series.questions);
        series.change = pettitt(&series.values(), ORDERS, &mut rng::stream(7, &purpose, 0));
    }
    let tested: Vec<usize> = (0..found.len()).filter(|i| found[*i].change.is_some()).collect();
    let p: Vec<f64> = tested.iter().filter_map(|i| found[*i].change.map(|change| change.p)).collect();
    tested.iter().zip(holm(&p)).for_each(|(i, p)| found[*i].p_corrected = Some(p));
    found
}

impl MetricSeries {
    /// Returns the values in the order of their dates.
    pub fn values(&self) -> Vec<f64> {
        self.points.iter().map(|point| point.estimate.value).collect()
    }

    /// Returns the change, if it is beyond chance after correction.
    pub fn shown_change(&self) -> Option<ChangePoint> {
        self.change.filter(|_| self.p_corrected.is_some_and(|p| p < 0.05))
    }

    /// Says whether the level changed.
    pub fn drift(&self) -> String {
        let (Some(change), Some(p)) = (self.change, self.p_corrected) else {
            return format!("{} of the five values that a test of drift needs", self.points.len());
        };
        let number = crate::runs::number::number;
        let levels = format!("{} before, {} from then on", number(change.mean_before), number(change.mean_after));
        match self.shown_change() {
            Some(_) => {
                let word = match self.direction.sign() {
                    None => "another level",
                    Some(sign) if sign * (change.mean_after - change.mean_before) > 0.0 => "better",
                    Some(_) => "worse",
                };
                format!("{word} since {}: {levels} (p {p:.4})", day(&self.points[change.after].evaluated))
            }
            None => format!("no drift shown (p {p:.4})"),
        }
    }
}

/// Returns the date of a time in RFC 3339.
pub fn day(time: &str) -> &str {
    time.get(..10).unwrap_or(time)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::eval::history::index::{tests::write, update};

    /// Evaluations on ten days, of which the last five are worse.
    pub fn drifting() -> Vec<EvaluationEntry> {
        let root = tempfile::tempdir().unwrap();
        for (day, right) in [30, 31, 30, 32, 31, 20, 21, 19, 20, 21].into_iter().enumerate() {
            write(&root.path().join(format!("run-{day}")), &format!("2026-03-{:02}T08:00:00+00:00", day + 1), right);
        }
        update(root.path(), false).unwrap()
    }

    #[test]
    fn a_fall_of_the_level_is_found_and_dated() {
        let found = series(&drifting(), &SeriesFilter::default());
        let [arc] = &found[..] else { panic!("one series") };
        assert_eq!((arc.points.len(), arc.metric.as_str(), arc.items), (10, "acc", 40));
        let change = arc.shown_change().unwrap();
        assert_eq!((change.after, change.statistic), (5, 25.0));
        assert!(
            arc.drift().starts_with("worse since 2026-03-06: 0.7700 before, 0.5050 from then on"),
            "{}",
            arc.drift()
        );
        let neutral = MetricSeries { direction: Direction::Neither, ..arc.clone() };
        assert!(neutral.drift().starts_with("another level since 2026-03-06"), "{}", neutral.drift());
        let base = series(&drifting(), &SeriesFilter { subject: Some("base"), ..Default::default() }).remove(0);
        assert_eq!(base.values(), [0.5; 10]);
        assert!(base.shown_change().is_none() && base.drift().starts_with("no drift shown"), "{}", base.drift());
        assert!(series(&drifting(), &SeriesFilter { task: Some("other"), ..Default::default() }).is_empty());
        let few = series(&drifting()[..4], &SeriesFilter::default()).remove(0);
        assert_eq!((few.change, few.drift().as_str()), (None, "4 of the five values that a test of drift needs"));
    }
}
