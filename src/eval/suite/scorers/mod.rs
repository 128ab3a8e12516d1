//! Scores written answers in other ways than by comparing them with expected texts.
//!
//! What a scorer reads of the rows is read before the first question is asked, so that a row that lacks a column, a tool or a sandbox that is
//! not there is told then. `instructions`: instructions that a program verifies; `structured`: JSON and tool calls; `grounded`: support by a
//! context and disagreement of samples; `content`: what answers are searched for; `code`: programs that are run; `rewards`: rewards; `compared`: win rates in pairs.

mod code;
mod compared;
mod content;
mod grounded;
mod instructions;
mod rewards;
mod structured;

use super::answers::ItemTexts;
use super::cache::AnswerCache;
use super::choices::mean_of;
use super::items::AskedItem;
use super::rows::{TaskRow, at};
use super::scores::{joint_metric, mean_metric};
use crate::error::{Error, Result};
use crate::eval::results::{ItemAnswer, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::scorers::{
    CONTENT_METRICS, DISAGREEMENT, INSTRUCTIONS, JSON, JSON_EQUAL, LISTED_WORDS, OVER_REFUSAL, PERSONAL_DATA, REWARD,
    SENTIMENT, SUPPORT, TOOL_CALLS, WIN_RATE, is_scorer,
};
use crate::recipe::suite_file::{GenerateTask, SuiteTask};
use crate::stats::bootstrap::Estimate;
use serde_json::Value;

/// Metrics of which a smaller value is better.
const LOWER_IS_BETTER: [&str; 6] =
    ["disagreement", "answer_entropy", "inconsistent", LISTED_WORDS, OVER_REFUSAL, PERSONAL_DATA];
/// Metrics of which neither end is better.
const UNDIRECTED: [&str; 2] = ["ties", SENTIMENT];
/// Metrics that are no means over items.
const JOINT: [&str; 5] =
    ["inst_level_strict_acc", "inst_level_loose_acc", "win_rate_length_controlled", "ties", "inconsistent"];

/// Fails if answers of a task are to be compared with those of a baseline, and only one model is evaluated.
pub fn check_baseline(task: &GenerateTask, subjects: usize) -> Result<()> {
    task.scorers.compare.as_ref().map_or(Ok(()), |by| compared::check_baseline(by, subjects))
}

/// Describes the numbers of a metric.
pub fn infos(task: &GenerateTask, metric: &str) -> Vec<MetricInfo> {
    let info = |name: &String| {
        let higher = !LOWER_IS_BETTER.contains(&name.as_str());
        let of = if JOINT.contains(&name.as_str()) { joint_metric } else { mean_metric };
        MetricInfo { undirected: UNDIRECTED.contains(&name.as_str()), ..of(name, higher) }
    };
    task.numbers_of(metric).iter().map(info).collect()
}

/// What the scorers of a task read of its rows.
#[derive(Default)]
pub struct RowScorers {
    instructions: Option<instructions::RowInstructions>,
    calls: Option<structured::ExpectedCalls>,
    json: Option<structured::JsonAnswers>,
    equal: Option<Vec<Vec<Value>>>,
    contexts: Option<Vec<String>>,
    code: Option<code::CodeScorer>,
    rewards: Option<rewards::Rewards>,
    compared: Option<compared::Comparisons>,
    content: Option<content::ContentScorer>,
}

/// The answers to a task, and what was asked.
pub struct AnsweredTask<'a> {
    /// The task.
    pub task: &'a SuiteTask,
    /// Its settings.
    pub generate: &'a GenerateTask,
    /// The model with all adapters.
    pub model: &'a Model,
    /// The prompts of the first subject as text.
    pub prompts: &'a [String],
    /// The expected answers of each item.
    pub expected: &'a [Vec<String>],
    /// The answers of each subject to each item.
    pub answers: &'a [Vec<ItemTexts>],
    /// The answers of the baseline, if it was asked before; otherwise it is the first subject.
    pub earlier: Option<&'a [ItemAnswer]>,
}

impl RowScorers {
    /// Reads the rows of a task whose prompts are made by templates.
    pub fn read(
        task: &SuiteTask,
        generate: &GenerateTask,
        rows: &[TaskRow],
        items: &[AskedItem],
        cache: &mut AnswerCache,
    ) -> Result<Self> {
        let has = |name: &str| generate.metrics.iter().any(|metric| metric == name);
        let scorers = &generate.scorers;
        let expected: Vec<Vec<String>> = items.iter().map(|item| item.expected.clone()).collect();
        let lines: Vec<usize> = rows.iter().map(|row| row.line).collect();
        let contexts = scorers.context.as_ref().map(|context| {
            let of = |row: &TaskRow| at(&task.data, row.line, context.render(&row.columns));
            rows.iter().map(of).collect::<Result<Vec<_>>>()
        });
        let rewards = scorers.reward.as_ref().map(|by| rewards::Rewards::open(by, task, rows, items));
        let compared = scorers.compare.as_ref().map(|by| compared::Comparisons::open(by, task, rows, items));
        let code = scorers.code.as_ref().map(|tests| code::CodeScorer::open(task, tests, rows, cache));
        Ok(Self {
            instructions: has(INSTRUCTIONS).then(|| instructions::read(task, rows)).transpose()?,
            json: has(JSON).then(|| structured::JsonAnswers::read(task, scorers.schema.as_ref(), rows)).transpose()?,
            equal: has(JSON_EQUAL).then(|| structured::expected_json(task, &lines, &expected)).transpose()?,
            contexts: contexts.transpose()?,
            code: code.transpose()?,
            rewards: rewards.transpose()?,
            compared: compared.transpose()?,
            ..Self::of_conversations(task, generate, &lines, &expected)?
        })
    }

    /// Reads rows that are conversations: of the metrics of this module, they may have tool calls.
    pub fn of_conversations(
        task: &SuiteTask,
        generate: &GenerateTask,
        lines: &[usize],
        expected: &[Vec<String>],
    ) -> Result<Self> {
        let calls = generate.metrics.iter().any(|metric| metric == TOOL_CALLS);
        let calls = calls.then(|| structured::expected_calls(task, lines, expected)).transpose()?;
        let searched = generate.metrics.iter().any(|metric| CONTENT_METRICS.contains(&metric.as_str()));
        let content = searched.then(|| content::ContentScorer::open(&generate.scorers.content)).transpose()?;
        Ok(Self { calls, content, ..Default::default() })
    }

    /// Scores the answers of all subjects, and adds the scores to their results.
    pub fn score(
        &self,
        answered: &AnsweredTask,
        results: &mut [SubjectResults],
        cache: &mut AnswerCache,
    ) -> Result<()> {
        for metric in answered.generate.metrics.iter().filter(|metric| is_scorer(metric) && *metric != WIN_RATE) {
            for (subject, results) in results.iter_mut().enumerate() {
                self.score_one(metric, answered, &answered.answers[subject], results, cache)?;
            }
        }
        if let Some(compared) = &self.compared {
            compared.score(answered, self.rewards.as_ref(), results, cache)?;
        }
        Ok(())
    }

    /// Scores the answers of one subject by one metric.
    fn score_one(
        &self,
        metric: &str,
        answered: &AnsweredTask,
        answers: &[ItemTexts],
        results: &mut SubjectResults,
        cache: &mut AnswerCache,
    ) -> Result<()> {
        match metric {
            INSTRUCTIONS => needed(&self.instructions)?.score(answers, results),
            TOOL_CALLS => needed(&self.calls)?.score(answers, results),
            JSON => needed(&self.json)?.score(answers, results),
            JSON_EQUAL => {
                let equal = needed(&self.equal)?;
                add_mean(results, JSON_EQUAL, each(answers, |i, text| structured::equals(text, &equal[i])));
            }
            SUPPORT => grounded::score_support(needed(&self.contexts)?, answers, results),
            DISAGREEMENT => grounded::score_disagreement(answers, results),
            searched if CONTENT_METRICS.contains(&searched) => {
                needed(&self.content)?.score(searched, answered.prompts, answers, results)?;
            }
            REWARD => needed(&self.rewards)?.score(answered, answers, results, cache)?,
            _ => needed(&self.code)?.score(metric, answered, answers, results, cache)?,
        }
        Ok(())
    }
}

/// Returns what a metric needs; `read` made it.
fn needed<T>(found: &Option<T>) -> Result<&T> {
    found.as_ref().ok_or_else(|| Error::bug("a metric without what it reads of the rows"))
}

/// Computes the mean score of each item's answers; the function gets the item's number and an answer.
fn each(answers: &[ItemTexts], score: impl Fn(usize, &str) -> f64) -> Vec<f64> {
    let of = |(i, texts): (usize, &ItemTexts)| {
        texts.scored.iter().map(|text| score(i, text)).sum::<f64>() / texts.scored.len() as f64
    };
    answers.iter().enumerate().map(of).collect()
}

/// Adds a score of each item, and its mean.
fn add_mean(results: &mut SubjectResults, name: &str, scores: Vec<f64>) {
    add_scores(results, name, scores);
    let mean = mean_of(name, &results.answers);
    add_estimate(results, name, mean);
}

/// Adds a score of each item.
fn add_scores(results: &mut SubjectResults, name: &str, scores: Vec<f64>) {
    for (answer, score) in results.answers.iter_mut().zip(scores) {
        answer.scores.insert(name.into(), score);
    }
}

fn add_estimate(results: &mut SubjectResults, name: &str, estimate: Option<Estimate>) {
    results.estimates.extend(estimate.map(|estimate| (name.to_string(), estimate)));
}
