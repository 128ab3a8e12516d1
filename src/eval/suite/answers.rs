//! Runs tasks whose answers the model writes.

use super::cache::AnswerCache;
use super::choices::mean_of;
use super::items::AskedItem;
use super::prompts::PromptForm;
use super::rows::{TaskRow, at};
use super::scorers::{self, AnsweredTask, RowScorers};
use super::scores::{ExactMatch, Extraction, joint_metric, mean_metric, vote};
use super::subject::SuiteSubject;
use super::written::{self, WrittenAnswers};
use crate::data::source;
use crate::error::{Error, Result};
use crate::eval::answer_metrics::{AnswerMetric, ReferencedAnswer};
use crate::eval::results::{ItemAnswer, MetricInfo, SubjectResults};
use crate::eval::rows::EvalRow;
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::recipe::suite_file::scorers::is_scorer;
use crate::recipe::suite_file::{FewShot, GenerateTask, RowLimit, SuiteTask};
use crate::report;
use std::collections::BTreeMap;

/// Most tokens of an answer to a prompt, as in lm-evaluation-harness.
const NEW_TOKENS: usize = 256;
/// Tokens of an answer beyond the longest expected one, for rows that are conversations.
const MORE_TOKENS: usize = 16;
const EXACT_MATCH: &str = "exact_match";

/// The prompts of one subject.
pub struct EncodedPrompts {
    /// Token ids of each item's prompt.
    ids: Vec<Vec<u32>>,
    /// The prompts as text.
    pub texts: Vec<String>,
    /// The right answers of each item.
    pub expected: Vec<Vec<String>>,
    /// The choices of each item, for each filter that looks for letters.
    choices: Vec<Vec<Vec<String>>>,
    /// Most tokens of an answer.
    max_new_tokens: usize,
}

/// The answers to one item after extraction.
pub struct ItemTexts {
    /// All samples.
    pub samples: Vec<String>,
    /// Those that are scored: all samples, or the one that they voted for.
    pub scored: Vec<String>,
}

/// Returns the metrics of a task.
pub fn written_metrics(generate: &GenerateTask) -> Vec<MetricInfo> {
    let info = |name: &String| match AnswerMetric::named(name) {
        Some(metric) if !metric.is_mean() => vec![joint_metric(name, metric.higher_is_better())],
        Some(metric) => vec![mean_metric(name, metric.higher_is_better())],
        None if is_scorer(name) => scorers::infos(generate, name),
        None => vec![mean_metric(name, true)],
    };
    generate.metrics.iter().flat_map(info).collect()
}

/// Encodes prompts that templates made.
pub fn encode_prompts(
    model: &Model,
    (task, generate, form): (&SuiteTask, &GenerateTask, &PromptForm),
    rows: &[TaskRow],
    items: &[AskedItem],
    subject: &SuiteSubject,
) -> Result<EncodedPrompts> {
    let max_new_tokens = generate.max_new_tokens.unwrap_or(NEW_TOKENS);
    let window = subject.window(model);
    let Some(room) = window.checked_sub(max_new_tokens).filter(|room| *room > 0) else {
        return Err(Error::user(format!(
            "task `{}`: answers of {max_new_tokens} tokens leave no room for a prompt, the model sees {window}",
            task.name
        ))
        .hint("lower generate.max_new_tokens"));
    };
    let (mut ids, mut texts, mut cut) = (Vec::new(), Vec::new(), 0);
    for (row, item) in rows.iter().zip(items) {
        let written = at(&task.data, row.line, form.write(&item.prompt, subject.tokenizer))?;
        let mut own = at(&task.data, row.line, form.encode(&written, subject.tokenizer))?;
        if own.is_empty() {
            own.push(subject.prefix_token()?);
        }
        if own.len() > room {
            cut += 1;
            own.drain(..own.len() - room);
        }
        ids.push(own);
        texts.push(written);
    }
    if cut > 0 {
        report::warn(format!(
            "task `{}`: {cut} prompts are longer than the {room} tokens that {} has room for beside an answer; their \
             beginning is left out",
            task.name, subject.info.name
        ));
    }
    let expected = items.iter().map(|item| item.expected.clone()).collect();
    let choices = items.iter().map(|item| item.choices.clone()).collect();
    Ok(EncodedPrompts { ids, texts, expected, choices, max_new_tokens })
}

/// Encodes rows that are conversations, as in training: the prompt is what stands before the last answer.
pub fn encode_conversations(
    task: &SuiteTask,
    generate: &GenerateTask,
    subject: &SuiteSubject,
) -> Result<(EncodedPrompts, Vec<usize>)> {
    let (mut rows, first) = (Vec::new(), RowLimit::first(task.limit));
    for file in source::files(&task.data)? {
        let room = first.map(|first| first - rows.len());
        if room != Some(0) {
            rows.extend(EvalRow::read(&file, room, subject.tokenizer)?);
        }
    }
    let mut lines = Vec::new();
    let mut prompts = EncodedPrompts {
        ids: Vec::new(),
        texts: Vec::new(),
        expected: Vec::new(),
        choices: Vec::new(),
        max_new_tokens: 0,
    };
    for row in RowLimit::keep(task.limit, rows) {
        let Some(question) = row.question else {
            return at(&task.data, row.line, Err(Error::user("a row of plain text asks nothing")))
                .map_err(|e| e.hint("add `prompt` and `answer` to the task, or make it one of kind `perplexity`"));
        };
        prompts.texts.push(subject.tokenizer.decode(&question.prompt, false)?);
        prompts.ids.push(question.prompt);
        prompts.expected.push(vec![question.expected]);
        prompts.max_new_tokens = prompts.max_new_tokens.max(question.expected_tokens + MORE_TOKENS);
        lines.push(row.line);
    }
    prompts.max_new_tokens = generate.max_new_tokens.unwrap_or(prompts.max_new_tokens);
    Ok((prompts, lines))
}

/// Generates and scores the answers of all subjects. `earlier`: what they are compared with in place of those of the first.
pub fn run_generate(
    model: &Model,
    (task, generate, form): (&SuiteTask, &GenerateTask, Option<&PromptForm>),
    (prompts, scorers): (&[EncodedPrompts], &RowScorers),
    (subjects, earlier): (&[SuiteSubject], Option<&[ItemAnswer]>),
    cache: &mut AnswerCache,
) -> Result<Vec<SubjectResults>> {
    // In plain text a model goes on with the next example.
    let between = || match form {
        Some(form) if !form.chat => {
            vec![task.few_shot.as_ref().map_or(FewShot::SEPARATOR.into(), |s| s.separator.clone())]
        }
        _ => Vec::new(),
    };
    let most = prompts.iter().map(|prompts| prompts.max_new_tokens).max().unwrap_or(NEW_TOKENS);
    let mut settings = GenerationSettings::greedy(most, subjects[0].tokenizer.stop_ids());
    settings.stop_texts = generate.stop.clone().unwrap_or_else(between);
    settings.stop_texts.retain(|text| !text.is_empty());
    let answers = generate.samples.as_ref().map_or(1, |samples| samples.answers);
    if let Some(samples) = &generate.samples {
        (settings.temperature, settings.top_p, settings.seed) = (samples.temperature, samples.top_p, samples.seed);
    }
    let ids: Vec<Vec<Vec<u32>>> = prompts.iter().map(|prompts| prompts.ids.clone()).collect();
    let found = written::answer(model, subjects, &ids, &settings, answers, cache, &task.name)?;
    let extracted = found.iter().map(|found| extracted(generate, found, &prompts[0].choices));
    let extracted = extracted.collect::<Result<Vec<_>>>()?;
    let each = prompts.iter().zip(found).zip(&extracted);
    let scored = each.map(|((prompts, found), texts)| scored(generate, &prompts.expected, found, texts));
    let mut results = scored.collect::<Result<Vec<_>>>()?;
    let answered = AnsweredTask {
        task,
        generate,
        model,
        prompts: &prompts[0].texts,
        expected: &prompts[0].expected,
        answers: &extracted,
        earlier,
    };
    scorers.score(&answered, &mut results, cache)?;
    Ok(results)
}

/// Extracts the answers of one subject. `choices`: those of each item, or none at all.
fn extracted(
    generate: &GenerateTask,
    found: &[WrittenAnswers],
    choices: &[Vec<Vec<String>>],
) -> Result<Vec<ItemTexts>> {
    let extraction = Extraction::of(generate)?;
    let votes = generate.samples.as_ref().is_some_and(|samples| samples.vote);
    let of = |(i, answers): (usize, &WrittenAnswers)| {
        let choices = choices.get(i).map_or(&[][..], Vec::as_slice);
        let samples: Vec<String> = answers.texts.iter().map(|text| extraction.apply(text, choices)).collect();
        let scored = if votes { vec![vote(&samples).to_string()] } else { samples.clone() };
        ItemTexts { samples, scored }
    };
    Ok(found.iter().enumerate().map(of).collect())
}

/// Compares the answers of one subject with the expected ones.
fn scored(
    generate: &GenerateTask,
    expected: &[Vec<String>],
    found: Vec<WrittenAnswers>,
    extracted: &[ItemTexts],
) -> Result<SubjectResults> {
    let exact = ExactMatch::of(generate)?;
    let texts: Vec<&Vec<String>> = extracted.iter().map(|texts| &texts.scored).collect();
    let mut scores: Vec<BTreeMap<String, f64>> = vec![BTreeMap::new(); expected.len()];
    let mut joint = Vec::new();
    let flat: Vec<ReferencedAnswer> = texts
        .iter()
        .zip(expected)
        .flat_map(|(texts, expected)| {
            texts.iter().map(|text| (text.as_str(), expected.iter().map(String::as_str).collect()))
        })
        .collect();
    for name in generate.metrics.iter().filter(|name| !is_scorer(name)) {
        let each: Vec<f64> = match AnswerMetric::named(name) {
            None if name == EXACT_MATCH => {
                let of_item = |(texts, expected): (&&Vec<String>, &Vec<String>)| {
                    texts.iter().map(|text| exact.score(text, expected)).collect::<Vec<_>>()
                };
                texts.iter().zip(expected).flat_map(of_item).collect()
            }
            None if is_scorer(name) => continue,
            None => return Err(Error::bug(format!("no metric `{name}`"))),
            Some(metric) => match metric.scores(&flat) {
                Some(each) => each,
                None => {
                    joint.extend(metric.measure_any(&flat).map(|estimate| (name.clone(), estimate)));
                    continue;
                }
            },
        };
        let mut each = each.into_iter();
        for (texts, scores) in texts.iter().zip(&mut scores) {
            let sum: f64 = each.by_ref().take(texts.len()).sum();
            scores.insert(name.clone(), sum / texts.len() as f64);
        }
    }
    let answers: Vec<ItemAnswer> = found
        .into_iter()
        .zip(texts)
        .zip(scores)
        .map(|((written, texts), scores)| ItemAnswer {
            text: texts.first().cloned().unwrap_or_default(),
            scores,
            log_likelihoods: Vec::new(),
            finish_reason: Some(written.finish_reason),
            written: written.texts,
            ..Default::default()
        })
        .collect();
    let means = generate
        .metrics
        .iter()
        .filter(|name| !is_scorer(name))
        .filter_map(|name| Some((name.clone(), mean_of(name, &answers)?)));
    let estimates = means.chain(joint).collect();
    Ok(SubjectResults { estimates, answers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::suite_file::{AnswerScore, GENERATE_METRICS};

    #[test]
    fn the_file_of_a_suite_knows_every_metric() {
        let score = |metric: AnswerMetric| if metric.is_mean() { AnswerScore::Mean } else { AnswerScore::Joint };
        let compared = AnswerMetric::ALL.map(|(name, metric)| (name, score(metric)));
        let known: Vec<_> = std::iter::once((EXACT_MATCH, AnswerScore::Mean)).chain(compared).collect();
        assert_eq!(known, GENERATE_METRICS);
    }
}
