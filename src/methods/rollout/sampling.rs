//! Samples answers to prompts with the KV cache (continuous batching). The answers have no rewards yet.

use super::answer::SampledAnswer;
use crate::data::chat::ChatTokenizer;
use crate::data::dataset::PromptSet;
use crate::error::{Error, Result};
use crate::generate::answer::StopReason;
use crate::generate::engine::{BatchLimits, Engine, FinishedAnswer, GenerationRequest};
use crate::generate::settings::GenerationSettings;
use crate::models::Model;
use crate::report;

/// Generates `answers` answers to each of `indices` (rows of `prompts`) with the active adapter. The answers to one
/// prompt are consecutive, in the prompts' order. `stream(row, place)` numbers the random stream of a prompt, given its
/// row index and its place among `indices`.
pub fn generate_answers(
    model: &Model,
    (prompts, tokenizer): (&PromptSet, &ChatTokenizer),
    indices: &[usize],
    answers: usize,
    settings: GenerationSettings,
    stream: impl Fn(usize, usize) -> usize,
) -> Result<Vec<SampledAnswer>> {
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let mut engine = Engine::new(model, settings, BatchLimits::of(model)?)?.with_decoder(&decode);
    // Long prompts first: prompts of similar length then share the cache.
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(prompts.rows[indices[i]].ids.len()));
    for &i in &order {
        let prompt = &prompts.rows[indices[i]].ids;
        let stream = stream(indices[i], i) as u64;
        engine.add(GenerationRequest { answers, ..GenerationRequest::new(prompt, stream) })?;
    }
    let mut sampled: Vec<Option<SampledAnswer>> = vec![None; indices.len() * answers];
    let bar = report::bar(sampled.len() as u64, "answers");
    while !engine.is_idle() {
        let step = engine.step()?;
        bar.count(step.tokens.len() as u64, "tokens");
        bar.inc(step.finished.len() as u64);
        for FinishedAnswer { request, sample, completion } in step.finished {
            let at = order[request];
            let ids = &prompts.rows[indices[at]].ids;
            let text = match &completion.text {
                Some(text) => text.clone(),
                None => decode(completion.answer_tokens())?,
            };
            sampled[at * answers + sample] = Some(SampledAnswer {
                prompt: indices[at],
                ids: [ids, &completion.tokens[..]].concat(),
                answer_start: ids.len(),
                ended: matches!(completion.stop_reason, StopReason::EndToken | StopReason::Text),
                log_probs: completion.log_probs,
                text,
                rewards: Vec::new(),
                reward: 0.0,
            });
        }
    }
    bar.finish_and_clear();
    sampled.into_iter().collect::<Option<_>>().ok_or_else(|| Error::bug("a prompt of a rollout was not answered"))
}
