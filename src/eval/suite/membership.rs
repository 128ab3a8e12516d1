//! Runs tasks of membership: whether the loss tells rows that the model was trained on from rows that it was not (Yeom et al. 2018),
//! and whether its ratio to the loss of the first model does, usually the base (Carlini et al. 2021, section 5).

use super::cache::AnswerCache;
use super::likelihood::TokenPair;
use super::scores::{joint_estimate, joint_metric};
use super::subject::SuiteSubject;
use super::training_rows::{self, TrainedRow};
use crate::error::Result;
use crate::eval::results::{ItemAnswer, ItemInfo, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::{MembershipTask, SuiteTask};
use crate::report;
use crate::stats::ranks::{auc, true_positive_rate};
use std::collections::BTreeMap;

/// The share of false alarms at which true positives are counted.
const FALSE_ALARMS: f64 = 0.01;
/// The scores that rows are ordered by: minus the mean loss of a token, and that plus the first model's.
const SCORES: [&str; 2] = ["loss", "ratio"];
/// What a member is called among expected answers.
const MEMBER: &str = "member";

/// Returns the metrics. None is better if it is larger: a model that tells members apart betrays them.
pub fn membership_metrics() -> Vec<MetricInfo> {
    MembershipTask::METRICS.into_iter().map(|name| joint_metric(name, false)).collect()
}

/// Computes the losses of one subject. `rows`: the members and the others. `first`: the answers of the first subject.
pub fn run_membership(
    model: &Model,
    task: &SuiteTask,
    rows: [&[TrainedRow]; 2],
    subject: &SuiteSubject,
    first: Option<&[ItemAnswer]>,
    cache: &mut AnswerCache,
) -> Result<(SubjectResults, Vec<ItemInfo>)> {
    let window = subject.window(model);
    let (mut groups, mut items, mut cut) = (Vec::new(), Vec::new(), 0);
    for (rows, name) in rows.into_iter().zip([MEMBER, "other"]) {
        for row in rows {
            let (context, mut continuation) = (row.given.clone(), row.learnt.clone());
            cut += usize::from(continuation.len() > window);
            continuation.truncate(window);
            let text = subject.tokenizer.decode(&[&context[..], &continuation].concat(), true)?;
            items.push(training_rows::item(row.line, text, name.into()));
            groups.push(vec![TokenPair { context, continuation }]);
        }
    }
    if cut > 0 {
        report::warn(format!(
            "task `{}`: {cut} rows are longer than the {window} tokens that {} sees; their end is left out",
            task.name, subject.info.name
        ));
    }
    let found = subject.likelihoods(model, &groups, window, cache, &task.name)?;
    let mut answers = Vec::with_capacity(items.len());
    for (i, (group, found)) in groups.iter().zip(found.into_iter().flatten()).enumerate() {
        let tokens = group[0].continuation.len() as f64;
        let loss = -found.log_prob / tokens;
        let mut scores = BTreeMap::from([
            ("log_likelihood".to_string(), found.log_prob),
            ("tokens".to_string(), tokens),
            (SCORES[0].to_string(), -loss),
        ]);
        if let Some(base) = first.and_then(|first| first[i].scores.get(SCORES[0])) {
            scores.insert(SCORES[1].to_string(), -loss - base);
        }
        answers.push(ItemAnswer { scores, ..Default::default() });
    }
    let mut estimates = BTreeMap::new();
    for name in MembershipTask::METRICS {
        let (kind, score) = name.split_once('_').unwrap_or_default();
        let scores: Option<Vec<(f64, bool)>> = answers
            .iter()
            .zip(&items)
            .map(|(answer, item)| Some((*answer.scores.get(score)?, item.expected[0] == MEMBER)))
            .collect();
        let Some(scores) = scores else { continue };
        let estimate = joint_estimate(name, scores.len(), |drawn| separation(kind, &scores, drawn));
        estimates.extend(estimate.map(|estimate| (name.to_string(), estimate)));
    }
    Ok((SubjectResults { estimates, answers }, items))
}

/// Computes how well the score of rows (score, whether it is a member), drawn so many times each, tells members from others.
fn separation(kind: &str, scores: &[(f64, bool)], drawn: &[f64]) -> Option<f64> {
    let of = |member: bool| -> Vec<f64> {
        let rows = scores.iter().zip(drawn).filter(|((_, is), _)| *is == member);
        rows.flat_map(|((score, _), times)| std::iter::repeat_n(*score, *times as usize)).collect()
    };
    let (members, others) = (of(true), of(false));
    match kind {
        "auc" => auc(&members, &others),
        _ => true_positive_rate(&members, &others, FALSE_ALARMS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_drawn_twice_count_twice() {
        let scores = [(2.0, true), (1.0, true), (0.5, false), (1.5, false)];
        assert_eq!(separation("auc", &scores, &[1.0; 4]), Some(0.75));
        assert_eq!(separation("auc", &scores, &[2.0, 0.0, 1.0, 1.0]), Some(1.0));
        assert_eq!(separation("tpr", &scores, &[1.0; 4]), Some(0.5));
        assert_eq!(separation("auc", &scores, &[0.0, 0.0, 1.0, 1.0]), None);
    }
}
