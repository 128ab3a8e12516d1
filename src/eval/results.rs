//! The results of a suite: what every model answered to every item of every task, with the scores. Serialised as results.json.

use crate::stats::bootstrap::Estimate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The results of a suite for one or several models.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SuiteResults {
    /// The suite's file as named.
    pub suite: String,
    /// What reports call the suite.
    pub title: Option<String>,
    /// When the evaluation ended (RFC 3339); `None` in files of versions that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<String>,
    /// The models. The first is the baseline if there are several.
    pub subjects: Vec<Subject>,
    /// The tasks, in the suite's order.
    pub tasks: Vec<TaskResults>,
}

impl SuiteResults {
    /// Removes all models but the last.
    pub fn keep_last(&mut self) {
        let last = self.subjects.len().saturating_sub(1);
        self.subjects.drain(..last);
        self.tasks.iter_mut().for_each(|task| drop(task.results.drain(..last.min(task.results.len()))));
    }

    /// Adds the results of other models on the same suite.
    pub fn joined(mut self, others: Self) -> Self {
        self.subjects.extend(others.subjects);
        for (task, other) in self.tasks.iter_mut().zip(others.tasks) {
            task.results.extend(other.results);
        }
        self
    }
}

/// A model, or a base with an adapter.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Subject {
    /// What reports call it.
    pub name: String,
    /// The model's folder or file as named.
    pub model: String,
    /// The adapter's folder as named.
    pub adapter: Option<String>,
}

/// The results of one task.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TaskResults {
    /// The task's name.
    pub name: String,
    /// Name of the kind in files, such as `choice`.
    pub kind: String,
    /// Whether it measures what the models could do before they were tuned (`forgetting: true`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgetting: bool,
    /// The answer that counts as the favourable one, where groups are compared by the answers that they get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// Whether the prompts show the choices in their order, so that the place of a choice means something (kind `choice`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub order_shown: bool,
    /// Name of the metric that comparisons use.
    pub main_metric: String,
    /// The metrics.
    pub metrics: Vec<MetricInfo>,
    /// The file of rows as named.
    pub data: String,
    /// The items.
    pub items: Vec<ItemInfo>,
    /// The answers, one entry for each subject.
    pub results: Vec<SubjectResults>,
}

/// What a metric's numbers mean.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct MetricInfo {
    /// Its name, a key of `SubjectResults::estimates`.
    pub name: String,
    /// Whether a larger value is better.
    pub higher_is_better: bool,
    /// Whether the estimate is the mean of a score of each item (`ItemAnswer::scores`), so that paired tests apply.
    pub is_mean: bool,
    /// The value of a model without a preference, if the metric is better the closer it is to this one; then neither larger nor
    /// smaller values are better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neutral: Option<f64>,
    /// Whether neither a larger nor a smaller value is better, as for the share of rows that are continued word for word where nothing
    /// was to be remembered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undirected: bool,
}

/// Which values of a metric are better.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger ones.
    Higher,
    /// Smaller ones.
    Lower,
    /// Neither: a difference is a change.
    Neither,
}

impl Direction {
    /// Returns 1 or -1, by which a difference is multiplied so that better is larger; `None` if neither is better.
    pub fn sign(self) -> Option<f64> {
        match self {
            Self::Higher => Some(1.0),
            Self::Lower => Some(-1.0),
            Self::Neither => None,
        }
    }

    /// Returns a note for people; empty where larger values are better.
    pub fn note(self) -> &'static str {
        match self {
            Self::Higher => "",
            Self::Lower => "lower is better",
            Self::Neither => "neither end is better",
        }
    }
}

impl MetricInfo {
    /// Returns which of its values are better.
    pub fn direction(&self) -> Direction {
        match (self.neutral.is_some() || self.undirected, self.higher_is_better) {
            (true, _) => Direction::Neither,
            (false, true) => Direction::Higher,
            (false, false) => Direction::Lower,
        }
    }
}

/// One item of a task: what was asked, and what is right.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ItemInfo {
    /// The row in the file, from 1.
    pub line: usize,
    /// The prompt as text, as the first subject got it.
    pub prompt: String,
    /// The right answers.
    pub expected: Vec<String>,
    /// The category, if the task has one.
    pub category: Option<String>,
    /// The group, if the task compares groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The choices (kind `choice`).
    pub choices: Vec<String>,
}

/// What one model answered to one task.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SubjectResults {
    /// Value and interval of each metric. A metric without a value is left out.
    pub estimates: BTreeMap<String, Estimate>,
    /// The answers, one for each item.
    pub answers: Vec<ItemAnswer>,
}

/// The answer to one item.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
pub struct ItemAnswer {
    /// The written answer after extraction, or the chosen choice.
    pub text: String,
    /// Metrics of this item, and what those of all items are computed from (log-likelihood, tokens, words, bytes).
    pub scores: BTreeMap<String, f64>,
    /// Log-likelihoods of the choices (kind `choice`), else empty.
    pub log_likelihoods: Vec<f64>,
    /// Why a written answer ended.
    pub finish_reason: Option<String>,
    /// The answers as written, before extraction (kind `generate`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<String>,
    /// What scorers said about the answers: how the program of each ended, why a judge preferred one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
