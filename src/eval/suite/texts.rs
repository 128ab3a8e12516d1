//! Runs tasks of perplexity: how likely the model finds whole texts, in windows that roll over them.

use super::cache::AnswerCache;
use super::likelihood::TokenPair;
use super::prompts::encode_text;
use super::rows::{TaskRow, at};
use super::scores::{joint_estimate, joint_metric};
use super::subject::SuiteSubject;
use crate::error::{Error, Result};
use crate::eval::results::{ItemAnswer, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::{PerplexityTask, PerplexityUnit, SuiteTask};
use crate::text_metrics::words::is_python_whitespace;
use std::collections::BTreeMap;
use std::f64::consts::LN_2;

/// A metric: its name, and the count of an item that the likelihood is divided by.
fn measures(task: &PerplexityTask) -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |unit: &PerplexityUnit| match unit {
        PerplexityUnit::Token => vec![("token_perplexity", "tokens")],
        PerplexityUnit::Word => vec![("word_perplexity", "words")],
        PerplexityUnit::Byte => vec![("byte_perplexity", "bytes"), (BITS, "bytes")],
    };
    task.per.iter().flat_map(of).collect::<Vec<_>>().into_iter()
}

const BITS: &str = "bits_per_byte";

/// Returns the metrics of a task.
pub fn text_metrics(task: &PerplexityTask) -> Vec<MetricInfo> {
    measures(task).map(|(name, _)| joint_metric(name, false)).collect()
}

/// Divides a text into windows, as lm-evaluation-harness does (`get_rolling_token_windows`): each window of `window` tokens
/// predicts its last `stride` ones, the first one all. `prefix` stands before the text.
fn windows(ids: &[u32], prefix: u32, window: usize, stride: usize) -> Vec<TokenPair> {
    let first = ids.len().min(window);
    let mut found = vec![TokenPair { context: vec![prefix], continuation: ids[..first].to_vec() }];
    let mut predicted = first;
    while predicted < ids.len() {
        let end = ids.len().min(predicted + stride);
        // What predicts the last token is the input up to the one before it.
        let begin = (end - 1).saturating_sub(window);
        found.push(TokenPair { context: ids[begin..predicted].to_vec(), continuation: ids[predicted..end].to_vec() });
        predicted = end;
    }
    found
}

/// Returns the texts of the rows. Fails for an empty one.
pub fn texts_of(task: &SuiteTask, perplexity: &PerplexityTask, rows: &[TaskRow]) -> Result<Vec<String>> {
    let text = |row: &TaskRow| match perplexity.text.render(&row.columns)? {
        text if text.is_empty() => Err(Error::user("the text is empty").hint("leave the row out")),
        text => Ok(text),
    };
    rows.iter().map(|row| at(&task.data, row.line, text(row))).collect()
}

/// Computes how likely one subject finds each text.
pub fn run_perplexity(
    model: &Model,
    (task, perplexity): (&SuiteTask, &PerplexityTask),
    rows: &[TaskRow],
    texts: &[String],
    subject: &SuiteSubject,
    cache: &mut AnswerCache,
) -> Result<SubjectResults> {
    let most = subject.window(model);
    let window = perplexity.window.unwrap_or(most);
    if window > most {
        return Err(Error::user(format!("task `{}`: a window of {window} tokens, the model sees {most}", task.name))
            .hint("lower perplexity.window, or leave it out"));
    }
    let stride = perplexity.stride.unwrap_or(window);
    if stride > window {
        return Err(Error::user(format!("task `{}`: a stride of {stride} tokens, a window has {window}", task.name))
            .hint("lower perplexity.stride, or leave it out"));
    }
    let prefix = subject.prefix_token()?;
    let (mut groups, mut counts, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for (row, text) in rows.iter().zip(texts) {
        let ids = at(&task.data, row.line, encode_text(text, subject.tokenizer))?;
        let of_row = windows(&ids, prefix, window, stride);
        counts.push(of_row.len());
        tokens.push(ids.len());
        groups.extend(of_row.into_iter().map(|pair| vec![pair]));
    }
    let found = subject.likelihoods(model, &groups, window, cache, &task.name)?;
    let mut found = found.into_iter().flatten();
    let mut answers = Vec::with_capacity(texts.len());
    for ((text, windows), tokens) in texts.iter().zip(counts).zip(tokens) {
        let log_likelihood: f64 = found.by_ref().take(windows).map(|likelihood| likelihood.log_prob).sum();
        let counts = [("tokens", tokens), ("words", words(text)), ("bytes", text.len())];
        let mut scores = BTreeMap::from([("log_likelihood".to_string(), log_likelihood)]);
        scores.extend(counts.map(|(name, count)| (name.to_string(), count as f64)));
        for (name, unit) in measures(perplexity) {
            let value = of_sums(name, log_likelihood, scores[unit]);
            scores.extend(value.map(|value| (name.to_string(), value)));
        }
        answers.push(ItemAnswer { scores, ..Default::default() });
    }
    let mut estimates = BTreeMap::new();
    for (name, unit) in measures(perplexity) {
        let estimate = joint_estimate(name, answers.len(), |drawn| {
            let sum =
                |of: &str| drawn.iter().zip(&answers).map(|(times, answer)| times * answer.scores[of]).sum::<f64>();
            of_sums(name, sum("log_likelihood"), sum(unit))
        });
        estimates.extend(estimate.map(|estimate| (name.to_string(), estimate)));
    }
    Ok(SubjectResults { estimates, answers })
}

/// Computes a metric from a log-likelihood and a number of units; `None` if it is beyond all numbers.
fn of_sums(name: &str, log_likelihood: f64, units: f64) -> Option<f64> {
    let per_unit = -log_likelihood / units;
    Some(if name == BITS { per_unit / LN_2 } else { per_unit.exp() }).filter(|x| x.is_finite())
}

/// Counts the pieces between runs of whitespace, as `re.split(r"\s+", text)` does: empty ones at both ends count.
fn words(text: &str) -> usize {
    let spaces: Vec<bool> = text.chars().map(is_python_whitespace).collect();
    1 + spaces.iter().enumerate().filter(|(i, space)| **space && (*i == 0 || !spaces[i - 1])).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(context: &[u32], continuation: &[u32]) -> TokenPair {
        TokenPair { context: context.to_vec(), continuation: continuation.to_vec() }
    }

    /// The expected windows are those of `make_disjoint_window(get_rolling_token_windows(…))` in lm-evaluation-harness 0.4.13, with
    /// `max_seq_len` 4 and `context_len` 1 and 3.
    #[test]
    fn windows_predict_each_token_once() {
        let ids: Vec<u32> = (1..=10).collect();
        let whole = [pair(&[0], &[1, 2, 3, 4]), pair(&[4], &[5, 6, 7, 8]), pair(&[6, 7, 8], &[9, 10])];
        assert_eq!(windows(&ids, 0, 4, 4), whole);
        let strided = [
            pair(&[0], &[1, 2, 3, 4]),
            pair(&[2, 3, 4], &[5, 6]),
            pair(&[4, 5, 6], &[7, 8]),
            pair(&[6, 7, 8], &[9, 10]),
        ];
        assert_eq!(windows(&ids, 0, 4, 2), strided);
        assert_eq!(windows(&ids[..3], 0, 4, 2), [pair(&[0], &[1, 2, 3])]);
    }

    #[test]
    fn words_are_counted_as_python_splits() {
        assert_eq!(["a b\n\nc", " a ", "", "a\u{a0}b"].map(words), [3, 3, 1, 2]);
    }
}
