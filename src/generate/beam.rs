//! Beam search, step for step as in transformers: the most likely continuations of a prompt (beams) are kept at each
//! step. Beams that end are ranked by their score, sum of log-probabilities / length^length_penalty.

use super::answer::{DecodeFn, GeneratedAnswer, StopReason};
use super::logit_rules::LogitEdits;
use super::next_token::NextTokens;
use super::prefill::{PREFILL_TOKENS, prefill};
use super::prompt_check::{check_decoder, check_prompt, max_sequence_tokens};
use super::sampler;
use super::sequence::GrowingSequence;
use super::settings::GenerationSettings;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::native::{fetch, upload_slice};
use std::cmp::Ordering;
use tch::{Kind, Tensor};

/// When a search ends before the maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BeamEarlyStopping {
    /// As soon as `count` beams have ended.
    Yes,
    /// When no running beam, scored at its present length, beats the worst ended one.
    #[default]
    No,
    /// When no running beam could beat the worst ended one at any length.
    Never,
}

/// The options of beam search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSettings {
    /// Number of beams.
    pub count: usize,
    /// Number of answers returned.
    pub answers: usize,
    /// Exponent of the length: above 0 prefers long answers, below 0 short ones.
    pub length_penalty: f64,
    /// When the search ends before the maximum length.
    pub early_stopping: BeamEarlyStopping,
}

impl BeamSettings {
    /// Fails for values out of range and for settings that sample.
    pub fn check(&self, settings: &GenerationSettings) -> Result<()> {
        settings.check()?;
        if self.count == 0 || self.answers == 0 || self.answers > self.count {
            return Err(Error::user(format!("{} answers of {} beams", self.answers, self.count))
                .hint("--num-return-sequences is at most --num-beams, and both are 1 or more"));
        }
        if !self.length_penalty.is_finite() {
            return Err(Error::user(format!("length-penalty must be a number, found {}", self.length_penalty)));
        }
        if !settings.is_greedy() {
            return Err(Error::user("beam search does not sample")
                .hint("leave out --num-beams or the sampling options; --greedy ignores those of the model"));
        }
        Ok(())
    }
}

/// A continuation with this score or less is forbidden. It is the number that transformers adds to such scores.
const FORBIDDEN_SCORE: f32 = -1e9;

/// A continuation with its score. `sequence` includes the new token.
#[derive(Clone)]
struct Beam {
    sequence: GrowingSequence,
    score: f32,
    /// Index of the running beam that it continues.
    parent: usize,
    stopped: Option<StopReason>,
}

/// Answers one prompt by beam search; the best answer is first. Every answer begins with `prefix`.
pub fn search(
    model: &Model,
    prompt: &[u32],
    prefix: &[u32],
    settings: &GenerationSettings,
    beams: BeamSettings,
    decode: Option<DecodeFn>,
) -> Result<Vec<GeneratedAnswer>> {
    beams.check(settings)?;
    check_decoder(settings, decode)?;
    check_prompt(model, prompt, settings, "the prompt")?;
    let first = GrowingSequence::new(prompt, prefix, settings, max_sequence_tokens(model), 0, 0);
    if first.ids.len() >= first.max_length() {
        return Err(Error::user(format!("the prefix has {} tokens and leaves no room for an answer", prefix.len())));
    }
    let (count, prompt, longest) = (beams.count, first.ids.len(), first.max_length());
    let weigh = |score: f32, length: usize| score / (length as f64).powf(beams.length_penalty) as f32;
    let mut cache = model.cache(1);
    let mut logits = prefill(model, &[&first.ids], &mut cache, PREFILL_TOKENS)?;
    let mut running = vec![Beam { sequence: first, score: 0.0, parent: 0, stopped: None }];
    let mut ended: Vec<Beam> = Vec::new();
    let mut hopeful = true;
    loop {
        let mut edits = LogitEdits::default();
        running.iter().enumerate().for_each(|(i, b)| b.sequence.collect_edits(settings, i, &mut edits));
        let log_probs = logits.log_softmax(-1, Kind::Float);
        edits.apply(&log_probs, settings);
        // Each beam has as many ending continuations as there are stop tokens. With this many candidates, at least
        // `count` remain that do not end.
        let wide = count * (1 + settings.stop_ids.len()).max(2);
        let mut best = best_continuations(&running, &log_probs, wide, settings, decode)?;
        let length = running[0].sequence.ids.len() + 1 - prompt;
        let all_ended = best.iter().all(|b| b.stopped.is_some());

        // As in transformers, an ended beam becomes an answer only if it is among the first `count` candidates.
        let full = ended.len() >= count && beams.early_stopping == BeamEarlyStopping::Yes;
        if hopeful && !full {
            ended.extend(
                best.iter()
                    .take(count)
                    .filter(|b| b.stopped.is_some())
                    .map(|b| Beam { score: weigh(b.score, length), ..b.clone() }),
            );
            ended.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
            ended.truncate(count);
        }
        best.retain(|b| b.stopped.is_none());
        best.truncate(count);

        if let (Some(top), true) = (best.first(), ended.len() >= count) {
            let at = match beams.early_stopping {
                BeamEarlyStopping::Never if beams.length_penalty > 0.0 => longest - prompt,
                _ => length,
            };
            hopeful &= weigh(top.score, at) > ended[count - 1].score;
        }
        let enough = ended.len() >= count && beams.early_stopping == BeamEarlyStopping::Yes;
        if !hopeful || enough || all_ended || best.is_empty() {
            break;
        }
        cache.retain_slots(&best.iter().map(|b| b.parent).collect::<Vec<_>>());
        running = best;
        let last = || {
            let last: Vec<i64> = running.iter().map(|b| b.sequence.last_id()).collect();
            upload_slice(&last, model.device())
        };
        // Beams come and go at every step.
        logits = NextTokens::default().logits(model, &mut cache, last, |i| &running[i].sequence.ids[..])?;
    }
    ended.truncate(beams.answers);
    ended
        .into_iter()
        .map(|b| {
            let done = b.sequence.finish(b.stopped.unwrap_or(StopReason::Length), settings, decode)?;
            Ok(GeneratedAnswer { score: Some(b.score), ..done })
        })
        .collect()
}

/// Returns the `wide` most likely continuations of all running beams together, the best first. log_probs (B, V)
fn best_continuations(
    running: &[Beam],
    log_probs: &Tensor,
    wide: usize,
    settings: &GenerationSettings,
    decode: Option<DecodeFn>,
) -> Result<Vec<Beam>> {
    let width = log_probs.size()[1];
    let scores: Vec<f32> = running.iter().map(|b| b.score).collect();
    let all = (log_probs + upload_slice(&scores, log_probs.device()).unsqueeze(-1)).view([-1]);
    let (values, places) = all.topk((wide as i64).min(all.size()[0]), -1, true, true);
    let [alone, values, places] = fetch([&log_probs.view([-1]).index_select(0, &places), &values, &places]);
    let alone = Vec::<f32>::try_from(alone)?;
    let (values, places) = (Vec::<f32>::try_from(values)?, Vec::<i64>::try_from(places)?);
    let mut best = Vec::with_capacity(values.len());
    for ((score, place), log_prob) in values.into_iter().zip(places).zip(alone) {
        if score.is_nan() || score == f32::INFINITY {
            return Err(sampler::not_a_number());
        }
        // A rule forbids this token here.
        if score <= FORBIDDEN_SCORE {
            continue;
        }
        let (parent, id) = ((place / width) as usize, (place % width) as u32);
        let mut sequence = running[parent].sequence.clone();
        let stopped = sequence.push(id, log_prob, settings, decode)?;
        best.push(Beam { sequence, score, parent, stopped });
    }
    if best.is_empty() {
        return Err(sampler::no_token());
    }
    Ok(best)
}
