//! Runs tasks whose answers are continuations that the model finds more or less likely: choices, and single ones (cloze).

use super::cache::AnswerCache;
use super::items::{AskedItem, ChoiceItem};
use super::likelihood::{Likelihood, PairGroup, TokenPair};
use super::prompts::{PromptForm, PromptParts};
use super::rows::{TaskRow, at};
use super::scores::{calibration_error, joint_estimate, joint_metric, mean_estimate, mean_metric};
use super::subject::SuiteSubject;
use crate::error::{Error, Result};
use crate::eval::results::{ItemAnswer, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::{ChoiceMetric, ChoiceTask, SuiteTask};
use crate::report;
use crate::stats::bootstrap::Estimate;
use crate::stats::classification::{Confusion, softmax};
use crate::text_metrics::question_answering;
use std::collections::{BTreeMap, HashMap};

/// What is computed when the choices are shown in another order too.
const SHUFFLED: [(&str, bool); 2] = [("acc_shuffled", true), ("order_sensitivity", false)];

/// Encodes the pairs of a task for one subject, and counts those whose beginning is left out.
pub(super) struct PairEncoder<'a> {
    pub(super) task: &'a SuiteTask,
    pub(super) form: &'a PromptForm,
    pub(super) subject: &'a SuiteSubject<'a>,
    pub(super) window: usize,
    pub(super) cut: usize,
}

impl PairEncoder<'_> {
    /// Encodes the continuations of one written prompt, or of one each.
    pub(super) fn group(&mut self, row: &TaskRow, prompts: &[String], continuations: &[String]) -> Result<PairGroup> {
        let pairs = continuations.iter().enumerate().map(|(i, continuation)| {
            let prompt = prompts.get(i).or(prompts.first()).map_or("", String::as_str);
            at(&self.task.data, row.line, self.pair(prompt, continuation))
        });
        let pairs = pairs.collect::<Result<Vec<TokenPair>>>()?;
        self.cut += pairs.iter().filter(|pair| pair.context.len() + pair.continuation.len() > self.window + 1).count();
        Ok(pairs)
    }

    fn pair(&self, prompt: &str, continuation: &str) -> Result<TokenPair> {
        let (context, continuation) = self.form.encode_pair(prompt, continuation, self.subject.tokenizer)?;
        if context.is_empty() {
            self.subject.prefix_token()?;
        }
        if continuation.is_empty() {
            return Err(Error::user("a continuation has no token of its own: the tokenizer joins it with the prompt")
                .hint("does the prompt end in the middle of a word, or is `separator` empty?"));
        }
        if continuation.len() > self.window {
            return Err(Error::user(format!(
                "a continuation has {} tokens, the model sees {}",
                continuation.len(),
                self.window
            )));
        }
        Ok(TokenPair { context, continuation })
    }

    /// Tells how many prompts were too long.
    pub(super) fn warn(&self) {
        if self.cut > 0 {
            report::warn(format!(
                "task `{}`: {} prompts are longer than the {} tokens that {} sees; their beginning is left out",
                self.task.name, self.cut, self.window, self.subject.info.name
            ));
        }
    }
}

pub(super) fn write_all(form: &PromptForm, parts: &[PromptParts], subject: &SuiteSubject) -> Result<Vec<String>> {
    parts.iter().map(|parts| form.write(parts, subject.tokenizer)).collect()
}

/// Returns the metrics of a task of choices.
pub fn choice_metrics(choice: &ChoiceTask) -> Vec<MetricInfo> {
    let info = |metric: &ChoiceMetric| match metric {
        ChoiceMetric::Calibration => joint_metric(metric.name(), false),
        ChoiceMetric::Brier => mean_metric(metric.name(), false),
        ChoiceMetric::F1 | ChoiceMetric::MacroF1 | ChoiceMetric::Matthews | ChoiceMetric::QuestionExactMatch => {
            joint_metric(metric.name(), true)
        }
        _ => mean_metric(metric.name(), true),
    };
    let shuffled =
        SHUFFLED.iter().filter(|_| choice.shuffle.is_some()).map(|(name, higher)| mean_metric(name, *higher));
    choice.metrics.iter().map(info).chain(shuffled).collect()
}

/// Asks one subject the questions of a task of choices. Returns the results, and the prompts as text.
pub fn run_choice(
    model: &Model,
    (task, choice, form): (&SuiteTask, &ChoiceTask, &PromptForm),
    rows: &[TaskRow],
    items: &[ChoiceItem],
    subject: &SuiteSubject,
    cache: &mut AnswerCache,
) -> Result<(SubjectResults, Vec<String>)> {
    let mut encoder = PairEncoder { task, form, subject, window: subject.window(model), cut: 0 };
    let follows =
        |texts: &[String]| texts.iter().map(|text| format!("{}{text}", form.before_answer())).collect::<Vec<_>>();
    let unconditional = choice.metrics.contains(&ChoiceMetric::MutualInformation);
    let (mut groups, mut prompts) = (Vec::new(), Vec::new());
    for (row, item) in rows.iter().zip(items) {
        for (number, order) in item.orders.iter().enumerate() {
            let written = at(&task.data, row.line, write_all(form, &order.prompts, subject))?;
            groups.push(encoder.group(row, &written, &follows(&order.continuations))?);
            if number == 0 {
                prompts.push(written.join("\n---\n"));
            }
        }
        if unconditional {
            groups.push(encoder.group(row, &[String::new()], &follows(&item.orders[0].continuations))?);
        }
    }
    encoder.warn();
    let found = subject.likelihoods(model, &groups, encoder.window, cache, &task.name)?;
    let mut found = found.into_iter().map(|group| group.iter().map(|l: &Likelihood| l.log_prob).collect::<Vec<f64>>());
    let mut next = || found.next().unwrap_or_default();
    let mut answers = Vec::with_capacity(items.len());
    let (mut confidences, mut classes) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut right_rows = Vec::with_capacity(items.len());
    for item in items {
        let orders: Vec<Vec<f64>> = item.orders.iter().map(|_| next()).collect();
        let alone = unconditional.then(&mut next);
        let (answer, confidence) = score(choice, item, orders, alone);
        classes.push((item.right[0], largest(&answer.log_likelihoods)));
        right_rows.push((item.question.as_deref(), confidence.1));
        answers.push(answer);
        confidences.push(confidence);
    }
    let mut estimates = BTreeMap::new();
    for info in choice_metrics(choice) {
        let estimate = match info.is_mean {
            true => mean_of(&info.name, &answers),
            false if info.name == ChoiceMetric::QuestionExactMatch.name() => {
                mean_estimate(&info.name, &right_questions(&right_rows))
            }
            false => joint_estimate(&info.name, answers.len(), |drawn| match ChoiceMetric::named(&info.name) {
                Some(ChoiceMetric::Calibration) => calibration_error(&confidences, drawn),
                metric => class_score(metric?, &classes, drawn),
            }),
        };
        estimates.extend(estimate.map(|estimate| (info.name, estimate)));
    }
    Ok((SubjectResults { estimates, answers }, prompts))
}

/// Estimates the mean of a score over the answers.
pub fn mean_of(name: &str, answers: &[ItemAnswer]) -> Option<Estimate> {
    let scores: Vec<f64> = answers.iter().filter_map(|answer| answer.scores.get(name).copied()).collect();
    mean_estimate(name, &scores)
}

/// Scores one question. `orders`: log-likelihoods of the choices in the file's order, for each order shown; `alone`: those without
/// a prompt. Returns the answer, and the probability of the chosen choice with whether it is right.
fn score(
    choice: &ChoiceTask,
    item: &ChoiceItem,
    orders: Vec<Vec<f64>>,
    alone: Option<Vec<f64>>,
) -> (ItemAnswer, (f64, bool)) {
    let lls = &orders[0];
    let divided = |length: &dyn Fn(&str) -> usize| -> usize {
        let length = |text: &String| if choice.letters { 1.0 } else { length(text) as f64 };
        largest(&lls.iter().zip(&item.choices).map(|(ll, text)| ll / length(text)).collect::<Vec<_>>())
    };
    let probabilities = softmax(lls);
    let chosen = largest(lls);
    let right = |number: usize| f64::from(u8::from(item.right.contains(&number)));
    let mut scores = BTreeMap::new();
    for metric in &choice.metrics {
        let score = match metric {
            ChoiceMetric::Accuracy => right(chosen),
            ChoiceMetric::PerCharacter => right(divided(&|text| text.chars().count())),
            ChoiceMetric::PerByte => right(divided(&str::len)),
            ChoiceMetric::MutualInformation => {
                let alone = alone.as_deref().unwrap_or_default();
                right(largest(&lls.iter().zip(alone).map(|(ll, alone)| ll - alone).collect::<Vec<_>>()))
            }
            ChoiceMetric::Brier => {
                let share = 1.0 / item.right.len() as f64;
                probabilities.iter().enumerate().map(|(i, p)| (p - right(i) * share).powi(2)).sum()
            }
            ChoiceMetric::RightMass => (0..probabilities.len()).map(|i| probabilities[i] * right(i)).sum(),
            ChoiceMetric::TextF1 => question_answering::f1(said(item, chosen), &right_texts(item)),
            ChoiceMetric::TextExactMatch => {
                f64::from(u8::from(question_answering::exact_match(said(item, chosen), &right_texts(item))))
            }
            ChoiceMetric::Calibration
            | ChoiceMetric::F1
            | ChoiceMetric::MacroF1
            | ChoiceMetric::Matthews
            | ChoiceMetric::QuestionExactMatch => continue,
        };
        scores.insert(metric.name().to_string(), score);
    }
    if let Some(shuffled) = orders.get(1) {
        let other = largest(shuffled);
        scores.insert(SHUFFLED[0].0.into(), right(other));
        scores.insert(SHUFFLED[1].0.into(), f64::from(u8::from(other != chosen)));
    }
    let text = item.choices[chosen].clone();
    let confidence = (probabilities[chosen], item.right.contains(&chosen));
    (
        ItemAnswer {
            text,
            scores,
            log_likelihoods: orders.into_iter().next().unwrap_or_default(),
            ..Default::default()
        },
        confidence,
    )
}

/// Returns what a choice says.
fn said(item: &ChoiceItem, choice: usize) -> &str {
    &item.texts.as_ref().unwrap_or(&item.choices)[choice]
}

fn right_texts(item: &ChoiceItem) -> Vec<&str> {
    item.right.iter().map(|right| said(item, *right)).collect()
}

/// Returns 1 for each question all of whose rows are right, else 0, in the order in which questions first occur.
fn right_questions(rows: &[(Option<&str>, bool)]) -> Vec<f64> {
    let (mut order, mut all): (Vec<Option<&str>>, HashMap<Option<&str>, bool>) = Default::default();
    for (question, right) in rows {
        let so_far = all.entry(*question).or_insert_with(|| {
            order.push(*question);
            true
        });
        *so_far &= right;
    }
    order.iter().map(|question| f64::from(u8::from(all[question]))).collect()
}

/// Computes a score of the choices' numbers as classes, given as (right, chosen), where item i was drawn `drawn[i]` times.
fn class_score(metric: ChoiceMetric, classes: &[(usize, usize)], drawn: &[f64]) -> Option<f64> {
    let most = classes.iter().map(|(right, chosen)| *right.max(chosen)).max()?;
    let rows = classes.iter().zip(drawn).flat_map(|(pair, times)| std::iter::repeat_n(*pair, *times as usize));
    let confusion = Confusion::of(rows, most.max(1) + 1);
    match metric {
        ChoiceMetric::F1 => Some(confusion.f1(1)),
        ChoiceMetric::MacroF1 => confusion.macro_f1(),
        _ => Some(confusion.matthews()),
    }
}

/// Returns the place of the largest number; of equal ones the first.
fn largest(numbers: &[f64]) -> usize {
    (0..numbers.len()).fold(0, |best, i| if numbers[i] > numbers[best] { i } else { best })
}

/// The metrics of a cloze task.
pub fn cloze_metrics() -> Vec<MetricInfo> {
    vec![mean_metric("acc", true), joint_metric("perplexity", false)]
}

/// Asks one subject for the likelihood of the right continuation of each prompt. Returns the results, and the prompts as text.
pub fn run_cloze(
    model: &Model,
    (task, form): (&SuiteTask, &PromptForm),
    rows: &[TaskRow],
    items: &[AskedItem],
    subject: &SuiteSubject,
    cache: &mut AnswerCache,
) -> Result<(SubjectResults, Vec<String>)> {
    let mut encoder = PairEncoder { task, form, subject, window: subject.window(model), cut: 0 };
    let (mut groups, mut prompts) = (Vec::new(), Vec::new());
    for (row, item) in rows.iter().zip(items) {
        let written = at(&task.data, row.line, write_all(form, std::slice::from_ref(&item.prompt), subject))?;
        groups.push(encoder.group(row, &written, &[format!("{}{}", form.before_answer(), item.expected[0])])?);
        prompts.extend(written);
    }
    encoder.warn();
    let found = subject.likelihoods(model, &groups, encoder.window, cache, &task.name)?;
    let answer = |(item, likelihood): (&AskedItem, &Likelihood)| ItemAnswer {
        text: if likelihood.greedy { item.expected[0].clone() } else { String::new() },
        scores: [("acc", f64::from(u8::from(likelihood.greedy))), ("log_likelihood", likelihood.log_prob)]
            .map(|(name, score)| (name.to_string(), score))
            .into(),
        ..Default::default()
    };
    let likelihoods: Vec<Likelihood> = found.into_iter().flatten().collect();
    let answers: Vec<ItemAnswer> = items.iter().zip(&likelihoods).map(answer).collect();
    let perplexity = joint_estimate("perplexity", answers.len(), |drawn| {
        let sum: f64 = drawn.iter().zip(&likelihoods).map(|(times, likelihood)| times * likelihood.log_prob).sum();
        Some((-sum / drawn.iter().sum::<f64>()).exp()).filter(|x| x.is_finite())
    });
    let estimates = [("acc", mean_of("acc", &answers)), ("perplexity", perplexity)];
    let estimates = estimates.into_iter().filter_map(|(name, found)| Some((name.to_string(), found?))).collect();
    Ok((SubjectResults { estimates, answers }, prompts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_right_if_all_its_rows_are() {
        let rows = [("b", true), ("a", true), ("b", false), ("a", true), ("c", false), ("b", true)];
        assert_eq!(right_questions(&rows.map(|(question, right)| (Some(question), right))), [0.0, 1.0, 0.0]);
        assert!(right_questions(&[]).is_empty());
    }

    #[test]
    fn chosen_texts_are_compared_as_squad_does() {
        let texts = ["the New York Times", "New York", "Boston"].map(String::from).to_vec();
        let item = ChoiceItem {
            choices: ["1", "2", "3"].map(String::from).to_vec(),
            right: vec![0],
            texts: Some(texts),
            question: None,
            orders: Vec::new(),
        };
        let f1 = |chosen| question_answering::f1(said(&item, chosen), &right_texts(&item));
        assert_eq!([f1(0), f1(1), f1(2)], [1.0, 0.8, 0.0]);
        let own = ChoiceItem { texts: None, ..item };
        assert_eq!((said(&own, 1), right_texts(&own)), ("2", vec!["1"]));
    }
}
