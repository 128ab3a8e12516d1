//! Runs tasks of exposure: how much likelier the model finds canaries than other texts of the same form (Carlini et al. 2019).

use super::cache::AnswerCache;
use super::choices::{PairEncoder, mean_of, write_all};
use super::items::AskedItem;
use super::prompts::PromptForm;
use super::rows::{TaskRow, at};
use super::scores::mean_metric;
use super::subject::SuiteSubject;
use crate::error::{Error, Result};
use crate::eval::canary_pattern::CanaryPattern;
use crate::eval::exposure::{exposure, fitted_exposure};
use crate::eval::results::{ItemAnswer, MetricInfo, SubjectResults};
use crate::models::Model;
use crate::recipe::suite_file::{ExposureTask, SuiteTask};
use crate::rng;
use std::collections::BTreeMap;

/// Texts whose likelihood is computed together: they share what they begin with.
const TOGETHER: usize = 64;

/// Returns the metrics.
pub fn exposure_metrics() -> Vec<MetricInfo> {
    ExposureTask::METRICS.into_iter().map(|name| mean_metric(name, false)).collect()
}

/// Draws the other texts of each canary. Fails for a canary that does not have the form of its row.
pub fn other_texts(
    task: &SuiteTask,
    settings: &ExposureTask,
    rows: &[TaskRow],
    items: &[AskedItem],
) -> Result<Vec<Vec<String>>> {
    let others = |(i, (row, item)): (usize, (&TaskRow, &AskedItem))| {
        let drawn = settings.pattern.render(&row.columns).and_then(|form| {
            let pattern = CanaryPattern::new(&form)?;
            let canary = &item.expected[0];
            match pattern.matches(canary) {
                true => pattern.others(canary, settings.others, &mut rng::stream(settings.seed, "canaries", i as u64)),
                false => Err(Error::user(format!("the canary `{canary}` does not have the form `{form}`"))),
            }
        });
        at(&task.data, row.line, drawn)
    };
    rows.iter().zip(items).enumerate().map(others).collect()
}

/// Measures the exposure of each canary to one subject. Returns the results, and the prompts as text.
pub fn run_exposure(
    model: &Model,
    (task, form): (&SuiteTask, &PromptForm),
    rows: &[TaskRow],
    (items, others): (&[AskedItem], &[Vec<String>]),
    subject: &SuiteSubject,
    cache: &mut AnswerCache,
) -> Result<(SubjectResults, Vec<String>)> {
    let mut encoder = PairEncoder { task, form, subject, window: subject.window(model), cut: 0 };
    let (mut groups, mut prompts, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for ((row, item), others) in rows.iter().zip(items).zip(others) {
        let written = at(&task.data, row.line, write_all(form, std::slice::from_ref(&item.prompt), subject))?;
        let texts = std::iter::once(&item.expected[0]).chain(others);
        let texts: Vec<String> = texts.map(|text| format!("{}{text}", form.before_answer())).collect();
        for part in texts.chunks(TOGETHER) {
            groups.push(encoder.group(row, &written, part)?);
        }
        counts.push(texts.len().div_ceil(TOGETHER));
        prompts.extend(written);
    }
    encoder.warn();
    let mut found = subject.likelihoods(model, &groups, encoder.window, cache, &task.name)?.into_iter();
    let mut answers = Vec::with_capacity(items.len());
    for (item, groups) in items.iter().zip(counts) {
        let losses: Vec<f64> = found.by_ref().take(groups).flatten().map(|found| -found.log_prob).collect();
        let (canary, others) = (losses[0], &losses[1..]);
        let measured = exposure(canary, others).ok_or_else(|| Error::bug("a canary without other texts"))?;
        let mut scores = BTreeMap::from([
            ("exposure".to_string(), measured.bits),
            ("rank".to_string(), measured.rank as f64),
            ("log_likelihood".to_string(), -canary),
        ]);
        scores.extend(fitted_exposure(canary, others).map(|bits| ("exposure_fitted".to_string(), bits)));
        let text = if measured.rank == 1 { item.expected[0].clone() } else { String::new() };
        answers.push(ItemAnswer { text, scores, ..Default::default() });
    }
    let estimates =
        ExposureTask::METRICS.into_iter().filter_map(|name| Some((name.to_string(), mean_of(name, &answers)?)));
    Ok((SubjectResults { estimates: estimates.collect(), answers }, prompts))
}
