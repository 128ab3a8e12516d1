//! Generates answers to the prompts of a project, for annotators to compare.
//!
//! Each prompt has its own random stream, seeded with its key and the source. An answer therefore depends neither on
//! the other prompts nor on where an earlier run was interrupted. Invariant: an answer is kept only if its similarity
//! to every other answer to the prompt, from any source, is below a given limit.

use super::encoding;
use super::similar::Shingles;
use super::snapshot::Project;
use crate::data::chat::ChatTokenizer;
use crate::error::{Context, Result};
use crate::generate::answer::GeneratedAnswer;
use crate::generate::engine::{BatchLimits, Engine, GenerationRequest};
use crate::generate::settings::GenerationSettings;
use crate::label::record::answer::{NewCandidate, StoredPrompt};
use crate::models::Model;
use crate::rng;
use serde::Serialize;
use std::collections::BTreeMap;

/// Options of the generation of candidates.
#[derive(Debug, Clone)]
pub struct CandidatePlan {
    /// The source's name: model, adapter and temperature in words.
    pub source: String,
    /// Number of answers to each prompt.
    pub answers: usize,
    /// How answers are generated.
    pub settings: GenerationSettings,
    /// Limits of the memory that generation uses.
    pub limits: BatchLimits,
    /// Similarity (Jaccard index of four-character runs) from which on an answer counts as a duplicate. With 1, only
    /// answers that differ in nothing but case, spaces and punctuation are duplicates.
    pub alike: f64,
}

/// Counts of generated, kept and discarded answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CandidateCounts {
    /// Prompts for which answers were generated; the others already had enough answers of the source.
    pub prompts: usize,
    /// Answers that were generated.
    pub answers: usize,
    /// Answers that were kept.
    pub kept: usize,
    /// Answers that were discarded because they are white space only.
    pub empty: usize,
    /// Answers that were discarded because they are equal or too similar to another one.
    pub alike: usize,
}

/// Returns the prompts that have fewer answers of this source than `plan.answers`.
pub fn unanswered_prompts<'p>(project: &'p Project, plan: &CandidatePlan) -> Vec<&'p StoredPrompt> {
    let mut have: BTreeMap<i64, usize> = BTreeMap::new();
    project.candidates.iter().filter(|c| c.source == plan.source).for_each(|c| *have.entry(c.prompt).or_default() += 1);
    project.prompts.iter().filter(|p| have.get(&p.id).copied().unwrap_or(0) < plan.answers).collect()
}

/// Generates answers to the prompts that [`unanswered_prompts`] returns. `done` gets the kept answers of a prompt as
/// soon as all its answers are complete.
///
/// Errors: a prompt that cannot be encoded or does not fit the model (named by its key); an error of `done`.
pub fn generate(
    model: &Model,
    tokenizer: &ChatTokenizer,
    project: &Project,
    plan: &CandidatePlan,
    done: &mut dyn FnMut(Vec<NewCandidate>) -> Result<()>,
) -> Result<CandidateCounts> {
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let mut engine = Engine::new(model, plan.settings.clone(), plan.limits)?.with_decoder(&decode);
    let prompts = unanswered_prompts(project, plan);
    for prompt in &prompts {
        let stream =
            rng::derived_seed(plan.settings.seed, &format!("label: candidates {} {}", plan.source, prompt.key), 0);
        let request = GenerationRequest {
            answers: plan.answers,
            ..GenerationRequest::new(&encoding::prompt_ids(prompt, tokenizer)?, stream)
        };
        engine.add(request).context(|| format!("prompt {}", prompt.key))?;
    }
    let mut known: BTreeMap<i64, Vec<Shingles>> = BTreeMap::new();
    project.candidates.iter().for_each(|c| known.entry(c.prompt).or_default().push(Shingles::of(&c.text)));
    let mut made = CandidateCounts { prompts: prompts.len(), ..CandidateCounts::default() };
    let mut unfinished: BTreeMap<usize, Vec<Option<GeneratedAnswer>>> = BTreeMap::new();
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
                        None => tokenizer.decode(answer.answer_tokens(), true)?,
                    };
                    // PostgreSQL text cannot contain U+0000, and no page shows it.
                    let text = text.replace('\0', "\u{FFFD}");
                    let shingles = Shingles::of(&text);
                    if text.trim().is_empty() {
                        made.empty += 1;
                    } else if before.iter().any(|s| s.similarity(&shingles) >= plan.alike) {
                        made.alike += 1;
                    } else {
                        before.push(shingles);
                        let tokens = Some(answer.answer_tokens().len() as i64);
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
