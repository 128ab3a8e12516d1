//! Evaluates a language model on rows: the loss of their supervised tokens, and greedy answers compared with the
//! expected ones.

use super::metrics::{matches, matches_ignoring_case};
use super::rows::{EvalQuestion, EvalRow};
use crate::data::chat::ChatTokenizer;
use crate::data::encode::Example;
use crate::error::{Error, Result};
use crate::generate::answer::{GeneratedAnswer, StopReason};
use crate::generate::answering_adapter::AnsweringAdapter;
use crate::generate::engine::{GenerationRequest, complete_requests};
use crate::generate::settings::GenerationSettings;
use crate::methods::sft::SupervisedBatch;
use crate::models::Model;
use crate::stats::{bootstrap::mean_interval, moments::mean, proportion::Proportion};
use crate::{report, rng};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Instant;
use tch::Kind;

/// Most tokens of a packed row, unless one example alone is longer.
const PACK_TOKENS: usize = 4096;

/// The results of an evaluation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of rows.
    pub rows: usize,
    /// Rows with a prompt to answer. The shares below are of these.
    pub asked: usize,
    /// Share of answers that equal the expected one, ignoring whitespace around them.
    pub exact_match: Option<f64>,
    /// 95 % Wilson interval of `exact_match`.
    pub exact_match_ci: Option<[f64; 2]>,
    /// As `exact_match`, ignoring case too.
    pub exact_match_ignoring_case: Option<f64>,
    /// Share of answers that the model ended by a stop token.
    pub stopped: Option<f64>,
    /// Mean loss of the supervised tokens.
    pub loss: f64,
    /// exp(loss)
    pub perplexity: f64,
    /// Number of supervised tokens.
    pub tokens: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Rows per second, losses and answers together.
    pub rows_per_s: f64,
}

/// A generated answer with the expected one.
#[derive(Debug, Clone, Serialize)]
pub struct EvalAnswer {
    /// The prompt as written in the row.
    pub prompt: Value,
    /// Text of the expected answer.
    pub expected: String,
    /// Text of the generated answer.
    pub text: String,
    /// Whether both are equal, ignoring whitespace around them.
    #[serde(rename = "match")]
    pub matched: bool,
    /// Why the answer ended, as [`StopReason::name`] calls it.
    pub finish_reason: &'static str,
    /// Mean loss of the row's supervised tokens.
    pub loss: f64,
}

/// What is evaluated: an adapter or the base, with the rows as its tokenizer encodes them.
pub struct EvalSubject<'a> {
    /// Which adapter answers.
    pub adapter: AnsweringAdapter,
    /// The tokenizer with its chat template.
    pub tokenizer: &'a ChatTokenizer,
    /// The rows.
    pub rows: &'a [EvalRow],
}

/// The results of one subject.
pub type EvalResult = (Evaluation, Vec<EvalAnswer>);

/// Measures the loss on `rows` and generates greedy answers to their prompts. `max_new_tokens` defaults to the length
/// of the longest expected answer plus 16.
pub fn evaluate(
    model: &Model,
    tokenizer: &ChatTokenizer,
    rows: &[EvalRow],
    max_new_tokens: Option<usize>,
) -> Result<EvalResult> {
    let subject = EvalSubject { adapter: AnsweringAdapter::Active, tokenizer, rows };
    Ok(evaluate_each(model, &[subject], max_new_tokens)?.remove(0))
}

/// Does the same for several subjects with the same stop tokens, whose answers are decoded in the same batches.
pub fn evaluate_each(
    model: &Model,
    subjects: &[EvalSubject],
    max_new_tokens: Option<usize>,
) -> Result<Vec<EvalResult>> {
    let started = Instant::now();
    let losses = subjects.iter().map(|s| {
        let examples: Vec<&Example> = s.rows.iter().flat_map(|r| &r.examples).collect();
        model.with_adapter_id(s.adapter.number(model), |model| example_losses(model, &examples))
    });
    let losses = losses.collect::<Result<Vec<_>>>()?;
    fn asked<'a>(s: &EvalSubject<'a>) -> impl Iterator<Item = &'a EvalQuestion> {
        s.rows.iter().filter_map(|r| r.question.as_ref())
    }
    let longest = subjects.iter().flat_map(asked).map(|a| a.expected_tokens).max().unwrap_or(0);
    let stop_ids = subjects.first().map_or(&[][..], |s| s.tokenizer.stop_ids());
    let settings = GenerationSettings::greedy(max_new_tokens.unwrap_or(longest + 16), stop_ids);
    let request = |s: &EvalSubject, (i, question): (usize, &EvalQuestion)| GenerationRequest {
        adapter: s.adapter,
        ..GenerationRequest::new(&question.prompt, i as u64)
    };
    let requests: Vec<GenerationRequest> =
        subjects.iter().flat_map(|s| asked(s).enumerate().map(|q| request(s, q)).collect::<Vec<_>>()).collect();
    let mut left = vec![settings.max_new_tokens; requests.len()];
    // Answers of similar length all end late, at about the same time. Counting tokens shows the speed earlier.
    let bar = report::bar(requests.len() as u64, "answers");
    let answers = complete_requests(model, requests, &settings, &mut |i, id| {
        left[i] -= 1;
        bar.count(1, "tokens");
        if left[i] == 0 || settings.stop_ids.contains(&id) {
            bar.inc(1);
        }
    })?;
    bar.finish_and_clear();
    let rows: usize = subjects.iter().map(|s| s.rows.len()).sum();
    let rows_per_s = rows as f64 / started.elapsed().as_secs_f64();
    let mut answers = answers.into_iter();
    let result = |(s, losses): (&EvalSubject, Vec<(f64, usize)>)| {
        let own: Vec<GeneratedAnswer> = answers.by_ref().take(asked(s).count()).collect();
        result_of(s, losses, &own, settings.max_new_tokens, rows_per_s)
    };
    subjects.iter().zip(losses).map(result).collect()
}

/// Compares the answers of a subject with the expected ones. `losses` are those of all its examples.
fn result_of(
    subject: &EvalSubject,
    losses: Vec<(f64, usize)>,
    answers: &[GeneratedAnswer],
    max_new_tokens: usize,
    rows_per_s: f64,
) -> Result<EvalResult> {
    let EvalSubject { tokenizer, rows, .. } = subject;
    let (loss, tokens) = mean_per_token(&losses)?;
    let mut each = losses.into_iter();
    let mut own = |row: &EvalRow| {
        mean_per_token(&each.by_ref().take(row.examples.len()).collect::<Vec<_>>()).map(|(loss, _)| loss)
    };
    let row_losses = rows.iter().map(&mut own).collect::<Result<Vec<f64>>>()?;
    let asked = rows.iter().zip(row_losses).filter_map(|(row, loss)| Some((row.question.as_ref()?, loss)));
    let mut answered = Vec::with_capacity(answers.len());
    for ((asked, loss), answer) in asked.zip(answers) {
        let text = tokenizer.decode(answer.answer_tokens(), true)?;
        answered.push(EvalAnswer {
            prompt: asked.prompt_as_written.clone(),
            matched: matches(&text, &asked.expected),
            expected: asked.expected.clone(),
            text,
            finish_reason: answer.stop_reason.name(),
            loss,
        });
    }
    let n = answered.len();
    let share = |hits: usize| Proportion::of(hits, n).map(|r| r.share);
    let exact = Proportion::of(answered.iter().filter(|a| a.matched).count(), n);
    let evaluation = Evaluation {
        rows: rows.len(),
        asked: n,
        exact_match: exact.map(|r| r.share),
        exact_match_ci: exact.map(|r| r.interval),
        exact_match_ignoring_case: share(
            answered.iter().filter(|a| matches_ignoring_case(&a.text, &a.expected)).count(),
        ),
        stopped: share(answers.iter().filter(|a| a.stop_reason == StopReason::EndToken).count()),
        loss,
        perplexity: loss.exp(),
        tokens,
        max_new_tokens,
        rows_per_s,
    };
    Ok((evaluation, answered))
}

/// How far the results of two subjects on the same rows differ: the mean over rows, with a paired bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedDifference {
    /// The mean over rows.
    pub mean: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
}

impl PairedDifference {
    /// Compares a number of each row.
    fn of(after: impl Iterator<Item = f64>, before: impl Iterator<Item = f64>) -> Self {
        const DRAWS: usize = 10_000;
        let each: Vec<f64> = after.zip(before).map(|(a, b)| a - b).collect();
        let (low, high) = mean_interval(&each, DRAWS, &mut rng::stream(0, "paired evaluation", 0));
        Self { mean: mean(&each), interval: [low, high] }
    }

    /// Returns the differences of exact match and of the rows' losses between answers to the same prompts.
    pub fn between(after: &[EvalAnswer], before: &[EvalAnswer]) -> [Self; 2] {
        let hits = |answers: &[EvalAnswer]| answers.iter().map(|a| f64::from(u8::from(a.matched))).collect::<Vec<_>>();
        let losses = |answers: &[EvalAnswer]| answers.iter().map(|a| a.loss).collect::<Vec<_>>();
        let differ = |of: &dyn Fn(&[EvalAnswer]) -> Vec<f64>| Self::of(of(after).into_iter(), of(before).into_iter());
        [differ(&hits), differ(&losses)]
    }
}

/// Returns the mean loss over the supervised tokens of all examples, and the number of these tokens.
pub fn mean_loss(model: &Model, examples: &[&Example]) -> Result<(f64, usize)> {
    mean_per_token(&example_losses(model, examples)?)
}

/// Returns the mean over all tokens, and their number, from (summed loss, tokens) pairs. Fails if it is not finite.
fn mean_per_token(each: &[(f64, usize)]) -> Result<(f64, usize)> {
    let (sum, count) = each.iter().fold((0.0, 0), |(sum, count), (s, n)| (sum + s, count + n));
    let mean = sum / count.max(1) as f64;
    if !mean.is_finite() {
        return Err(Error::user(format!("the model's loss on these rows is {mean}"))
            .hint("its weights or its adapter contain NaN or infinite values; was the training run stable?"));
    }
    Ok((mean, count))
}

/// Returns the summed loss and the number of supervised tokens of each example. Fails for an example that the model
/// cannot read.
fn example_losses(model: &Model, examples: &[&Example]) -> Result<Vec<(f64, usize)>> {
    let config = model.config();
    let context = model.longest_sequence().unwrap_or(i64::MAX);
    for e in examples {
        if e.ids.len() as i64 > context {
            return Err(Error::user(format!(
                "line {}: {} tokens, the model's context is {context}",
                e.line,
                e.ids.len()
            ))
            .hint("shorten the row or leave it out"));
        }
        if let Some(id) = e.ids.iter().find(|id| i64::from(**id) >= config.vocab_size) {
            return Err(Error::user(format!(
                "line {}: token {id}, the model's vocabulary ends at {}",
                e.line,
                config.vocab_size - 1
            ))
            .hint("does tokenizer.json belong to this model?"));
        }
    }
    // Examples of similar length are packed together, because attention pads within a packed row.
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(examples[*i].ids.len()));
    let (mut found, mut from) = (vec![(0.0, 0); examples.len()], 0);
    let bar = report::bar(order.len() as u64, "losses");
    while from < order.len() {
        let mut held = 0;
        let fits = |i: &&usize| {
            held += examples[**i].ids.len();
            held <= PACK_TOKENS
        };
        let to = from + order[from..].iter().take_while(fits).count().max(1);
        let here: Vec<&Example> = order[from..to].iter().map(|i| examples[*i]).collect();
        let batch = SupervisedBatch::new(&here, model.device());
        let scores = model.infer(&batch.tokens, |out| out.log_probs(&batch.at, &batch.targets))?;
        let mut start = 0;
        for (i, example) in order[from..to].iter().zip(&here) {
            let n = example.target_count();
            let own = scores.log_probs.narrow(0, start, n as i64);
            found[*i] = (-own.sum(Kind::Double).double_value(&[]), n);
            start += n as i64;
        }
        bar.inc((to - from) as u64);
        from = to;
    }
    Ok(found)
}
