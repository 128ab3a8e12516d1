//! Answers that models write, decoded in batches that all subjects share.

use super::cache::{AnswerCache, key};
use super::subject::SuiteSubject;
use crate::error::Result;
use crate::generate::answer::GeneratedAnswer;
use crate::generate::engine::{BatchLimits, Engine, GenerationRequest};
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::report;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Answers to one prompt of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrittenAnswers {
    /// The texts before any stop text.
    pub texts: Vec<String>,
    /// Why the first one ended.
    pub finish_reason: String,
}

/// Generates `answers` answers to each prompt of each subject: `prompts[s][i]` are token ids. Known answers are taken from the
/// cache.
pub fn answer(
    model: &Model,
    subjects: &[SuiteSubject],
    prompts: &[Vec<Vec<u32>>],
    settings: &GenerationSettings,
    answers: usize,
    cache: &mut AnswerCache,
    what: &str,
) -> Result<Vec<Vec<WrittenAnswers>>> {
    let described = format!("{answers} answers, {settings:?}");
    let mut found: Vec<Vec<Option<WrittenAnswers>>> = Vec::new();
    let mut asked: Vec<(usize, usize, String)> = Vec::new();
    for (s, subject) in subjects.iter().enumerate() {
        let mut of_subject = Vec::new();
        for (i, prompt) in prompts[s].iter().enumerate() {
            // An answer that is sampled depends on its random stream, which is that of the item.
            let stream = if settings.is_greedy() { 0 } else { i as u32 };
            let key = key(&subject.identity, &described, &[prompt, &[stream]]);
            let known = cache.get::<WrittenAnswers>(&key);
            if known.is_none() {
                asked.push((s, i, key));
            }
            of_subject.push(known);
        }
        found.push(of_subject);
    }
    let total: usize = found.iter().map(Vec::len).sum();
    let bar = report::bar(total as u64, what).starting_at((total - asked.len()) as u64);
    // Long prompts first, so that prompts of similar length share the cache.
    asked.sort_by_key(|(s, i, _)| std::cmp::Reverse(prompts[*s][*i].len()));
    let decode = |ids: &[u32]| subjects[0].tokenizer.decode(ids, true);
    let mut engine =
        Engine::new(model, settings.clone(), BatchLimits::of(model)?)?.with_decoder(&decode).with_shared_beginnings();
    for (s, i, _) in &asked {
        let request = GenerationRequest::new(&prompts[*s][*i], *i as u64);
        engine.add(GenerationRequest { answers, adapter: subjects[*s].adapter, ..request })?;
    }
    let mut begun: BTreeMap<usize, Vec<Option<GeneratedAnswer>>> = BTreeMap::new();
    while !engine.is_idle() {
        let step = engine.step()?;
        bar.count(step.tokens.len() as u64, "tokens");
        for done in step.finished {
            let own = begun.entry(done.request).or_insert_with(|| vec![None; answers]);
            own[done.sample] = Some(done.completion);
            if own.iter().any(Option::is_none) {
                continue;
            }
            let (s, i, key) = &asked[done.request];
            let completions: Vec<GeneratedAnswer> =
                begun.remove(&done.request).into_iter().flatten().flatten().collect();
            let text = |answer: &GeneratedAnswer| match &answer.text {
                Some(text) => Ok(text.clone()),
                None => subjects[*s].tokenizer.decode(answer.answer_tokens(), true),
            };
            let written = WrittenAnswers {
                texts: completions.iter().map(text).collect::<Result<_>>()?,
                finish_reason: completions[0].stop_reason.name().into(),
            };
            cache.add(vec![(key.clone(), &written)])?;
            found[*s][*i] = Some(written);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let all = |of_subject: Vec<Option<WrittenAnswers>>| {
        of_subject.into_iter().map(|answer| answer.expect("every prompt is answered")).collect()
    };
    Ok(found.into_iter().map(all).collect())
}
