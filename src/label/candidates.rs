//! Answers to prompts by a model, for people to compare.
//!
//! Every prompt has a random stream of its own, by its key and the source, so that an answer depends neither on the
//! prompts beside it nor on where an earlier run was broken off. Invariant: what is handed on is new to its prompt:
//! no answer equals another, or is alike to one beyond a stated measure, whatever its source.

use super::asked;
use super::ballot::Project;
use super::record::{NewCandidate, Prompt};
use super::similar::Shingles;
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::generate::{Completion, Engine, Limits, Request, Settings};
use crate::models::Model;
use crate::rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is wanted of a model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The source's name: model, adapter and temperature in words.
    pub source: String,
    /// Answers to each prompt.
    pub answers: usize,
    pub settings: Settings,
    pub limits: Limits,
    /// Answers more alike than this (Jaccard's index of runs of four characters) are one; 1: only those that differ in
    /// nothing but case, spaces and punctuation.
    pub alike: f64,
}

/// What became of the answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Prompts that were asked; the others had enough answers of the source.
    pub prompts: usize,
    pub answers: usize,
    pub kept: usize,
    /// Left out: nothing but space; equal or too alike to another answer.
    pub empty: usize,
    pub alike: usize,
}

/// The prompts that have fewer answers of this source than are wanted.
pub fn open<'p>(project: &'p Project, plan: &Plan) -> Vec<&'p Prompt> {
    let mut have: BTreeMap<i64, usize> = BTreeMap::new();
    project.candidates.iter().filter(|c| c.source == plan.source).for_each(|c| *have.entry(c.prompt).or_default() += 1);
    project.prompts.iter().filter(|p| have.get(&p.id).copied().unwrap_or(0) < plan.answers).collect()
}

/// Answers the open prompts; `done` gets the answers that are kept of each as soon as its last one is whole.
///
/// Errors: a prompt that the model cannot be asked (named by its key), whatever `done` says.
pub fn generate(
    model: &Model,
    tokenizer: &ChatTokenizer,
    project: &Project,
    plan: &Plan,
    done: &mut dyn FnMut(Vec<NewCandidate>) -> Result<()>,
) -> Result<Made> {
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let mut engine = Engine::new(model, plan.settings.clone(), plan.limits)?.with_text(&decode);
    let prompts = open(project, plan);
    for prompt in &prompts {
        let stream = rng::number(plan.settings.seed, &format!("label: candidates {} {}", plan.source, prompt.key), 0);
        let request = Request { answers: plan.answers, ..Request::new(&asked::question(prompt, tokenizer)?, stream) };
        engine.add(request).context(|| format!("prompt {}", prompt.key))?;
    }
    let mut known: BTreeMap<i64, Vec<Shingles>> = BTreeMap::new();
    project.candidates.iter().for_each(|c| known.entry(c.prompt).or_default().push(Shingles::of(&c.text)));
    let mut made = Made { prompts: prompts.len(), ..Made::default() };
    let mut unfinished: BTreeMap<usize, Vec<Option<Completion>>> = BTreeMap::new();
    while !engine.is_idle() {
        for finished in engine.step()?.finished {
            let request = finished.request;
            let answers = unfinished.entry(request).or_insert_with(|| vec![None; plan.answers]);
            answers[finished.sample] = Some(finished.completion);
            if answers.iter().all(Option::is_some) {
                let answers = unfinished.remove(&request).into_iter().flatten().flatten();
                let prompt = prompts[request];
                let before = known.entry(prompt.id).or_default();
                let mut kept = Vec::new();
                for answer in answers {
                    made.answers += 1;
                    let text = match &answer.text {
                        Some(text) => text.clone(),
                        None => tokenizer.decode(answer.answer(), true)?,
                    };
                    // No page shows it and no PostgreSQL text may hold it.
                    let text = text.replace('\0', "\u{FFFD}");
                    let shingles = Shingles::of(&text);
                    if text.trim().is_empty() {
                        made.empty += 1;
                    } else if before.iter().any(|s| s.similarity(&shingles) >= plan.alike) {
                        made.alike += 1;
                    } else {
                        before.push(shingles);
                        let tokens = Some(answer.answer().len() as i64);
                        kept.push(NewCandidate { prompt: prompt.id, source: plan.source.clone(), text, tokens });
                    }
                }
                made.kept += kept.len();
                done(kept)?;
            }
        }
    }
    Ok(made)
}
