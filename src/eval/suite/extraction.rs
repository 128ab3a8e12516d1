//! Runs tasks of extraction: whether the model continues training rows word for word (Carlini et al. 2023, "Quantifying memorization
//! across neural language models").
//!
//! Nothing is generated: greedy decoding writes exactly the row's tokens if and only if each of them is the most likely one after
//! those before it, which one pass over the row tells.

use super::cache::AnswerCache;
use super::choices::mean_of;
use super::likelihood::TokenPair;
use super::scores::{joint_estimate, joint_metric, mean_metric};
use super::subject::SuiteSubject;
use super::training_rows::{self, TrainedRow};
use crate::error::{Error, Result};
use crate::eval::results::{ItemAnswer, ItemInfo, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::{ExtractionTask, SuiteTask};
use crate::report;
use std::collections::BTreeMap;

const EXTRACTED: &str = "extracted";
const PERPLEXITY: &str = "token_perplexity";

/// Returns the metrics. Of rows that were trained on, fewer continuations are better, and their perplexity alone says nothing of
/// them. Of rows that were not, a continuation betrays nothing, and a lower perplexity is that of a better model.
pub fn extraction_metrics(extraction: &ExtractionTask) -> Vec<MetricInfo> {
    let held_out = extraction.held_out;
    vec![
        MetricInfo { undirected: held_out, ..mean_metric(EXTRACTED, false) },
        MetricInfo { undirected: !held_out, ..joint_metric(PERPLEXITY, false) },
    ]
}

/// Divides a row into what is given and what has to follow; `None` if it is too short. `bos`: the token that texts begin with, which
/// does not count.
fn divide(extraction: &ExtractionTask, row: &TrainedRow, bos: Option<u32>) -> Option<TokenPair> {
    let prefix = extraction.prefix.unwrap_or(if row.is_text { ExtractionTask::TOKENS } else { 0 });
    let wanted = extraction.continuation.or(row.is_text.then_some(ExtractionTask::TOKENS));
    // The first token of a text is given in any case.
    let counted = usize::from(row.is_text && row.given.last().copied() != bos);
    let (given, rest) = row.learnt.split_at_checked(prefix.saturating_sub(counted))?;
    let rest = rest.get(..wanted.unwrap_or(rest.len())).filter(|rest| !rest.is_empty())?;
    Some(TokenPair { context: [&row.given, given].concat(), continuation: rest.to_vec() })
}

/// Asks one subject to continue the rows. Returns the results and the items: rows that are long enough.
pub fn run_extraction(
    model: &Model,
    (task, extraction): (&SuiteTask, &ExtractionTask),
    rows: &[TrainedRow],
    subject: &SuiteSubject,
    cache: &mut AnswerCache,
) -> Result<(SubjectResults, Vec<ItemInfo>)> {
    let bos = subject.tokenizer.bos();
    let asked: Vec<(usize, TokenPair)> =
        rows.iter().filter_map(|row| Some((row.line, divide(extraction, row, bos)?))).collect();
    if asked.is_empty() {
        return Err(Error::user(format!("{}: no row is long enough to be continued", task.data.display()))
            .hint("lower extraction.prefix and extraction.continuation"));
    }
    if asked.len() < rows.len() {
        let short = report::count((rows.len() - asked.len()) as u64);
        report::warn(format!("task `{}`: {short} rows are too short to be continued and are left out", task.name));
    }
    let groups: Vec<Vec<TokenPair>> = asked.iter().map(|(_, pair)| vec![pair.clone()]).collect();
    let found = subject.likelihoods(model, &groups, subject.window(model), cache, &task.name)?;
    let (mut items, mut answers) = (Vec::new(), Vec::new());
    for ((line, pair), found) in asked.iter().zip(found.into_iter().flatten()) {
        let decode = |ids: &[u32]| subject.tokenizer.decode(ids, true);
        let expected = decode(&pair.continuation)?;
        let scores = [
            (EXTRACTED, f64::from(u8::from(found.greedy))),
            ("log_likelihood", found.log_prob),
            ("tokens", pair.continuation.len() as f64),
        ];
        answers.push(ItemAnswer {
            text: if found.greedy { expected.clone() } else { String::new() },
            scores: scores.map(|(name, score)| (name.to_string(), score)).into(),
            ..Default::default()
        });
        items.push(training_rows::item(*line, decode(&pair.context)?, expected));
    }
    let perplexity = joint_estimate(PERPLEXITY, answers.len(), |drawn| {
        let sum = |of: &str| drawn.iter().zip(&answers).map(|(times, answer)| times * answer.scores[of]).sum::<f64>();
        Some((-sum("log_likelihood") / sum("tokens")).exp()).filter(|x| x.is_finite())
    });
    let estimates = [(EXTRACTED, mean_of(EXTRACTED, &answers)), (PERPLEXITY, perplexity)];
    let estimates: BTreeMap<_, _> =
        estimates.into_iter().filter_map(|(name, found)| Some((name.to_string(), found?))).collect();
    Ok((SubjectResults { estimates, answers }, items))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(prefix: Option<usize>, continuation: Option<usize>, row: (bool, &[u32], &[u32])) -> Option<TokenPair> {
        let row = TrainedRow { line: 1, is_text: row.0, given: row.1.to_vec(), learnt: row.2.to_vec() };
        divide(&ExtractionTask { text: None, prefix, continuation, held_out: false }, &row, Some(0))
    }

    #[test]
    fn what_is_better_depends_on_whether_rows_were_trained_on() {
        use crate::eval::results::Direction;
        let directions = |held_out| {
            let task = ExtractionTask { text: None, prefix: None, continuation: None, held_out };
            extraction_metrics(&task).iter().map(MetricInfo::direction).collect::<Vec<_>>()
        };
        assert_eq!(directions(false), [Direction::Lower, Direction::Neither]);
        assert_eq!(directions(true), [Direction::Neither, Direction::Lower]);
    }

    #[test]
    fn texts_are_divided_by_tokens_and_answers_follow_their_prompts() {
        let pair = |context: &[u32], continuation: &[u32]| {
            Some(TokenPair { context: context.to_vec(), continuation: continuation.to_vec() })
        };
        let text = |given: u32, learnt: &'static [u32]| (true, if given == 0 { &[0][..] } else { &[4][..] }, learnt);
        assert_eq!(divided(Some(2), Some(2), text(0, &[5, 6, 7, 8, 9])), pair(&[0, 5, 6], &[7, 8]));
        assert_eq!(divided(Some(2), Some(2), text(4, &[5, 6, 7, 8])), pair(&[4, 5], &[6, 7]));
        assert_eq!(divided(Some(2), Some(3), text(0, &[5, 6, 7, 8])), None, "too short");
        assert_eq!(divided(Some(9), None, text(0, &[5, 6])), None, "too short for the prefix");
        let answer = (false, &[1, 2][..], &[5, 6, 7][..]);
        assert_eq!(divided(None, None, answer), pair(&[1, 2], &[5, 6, 7]));
        assert_eq!(divided(Some(1), None, answer), pair(&[1, 2, 5], &[6, 7]));
        assert_eq!(divided(Some(3), None, answer), None, "nothing is left to follow");
        let long: Vec<u32> = (1..=100).collect();
        assert_eq!(divided(None, None, (true, &[0], &long)).unwrap().continuation, (51..=100).collect::<Vec<u32>>());
        assert_eq!(divided(None, None, (true, &[0], &long[..99])), None);
    }
}
