//! One sequence while it is generated: its tokens, its random stream, the logit changes for its next token, and its
//! end.

use super::answer::{DecodeFn, GeneratedAnswer, StopReason};
use super::logit_rules::LogitEdits;
use super::settings::GenerationSettings;
use super::stop::StopTextWatch;
use crate::error::Result;
use crate::rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// A prompt with the answer generated so far.
#[derive(Clone)]
pub(super) struct GrowingSequence {
    /// Token ids of prompt and answer.
    pub ids: Vec<u32>,
    /// Index in `ids` at which the answer begins.
    start: usize,
    /// Most tokens of the answer.
    max_answer_tokens: usize,
    /// Whether `max_answer_tokens` is set by the model's context rather than by the settings.
    limited_by_context: bool,
    log_probs: Vec<f32>,
    rng: ChaCha8Rng,
    /// How often each token occurred in the answer (0: in the prompt only). `None` if no penalty needs it.
    counts: Option<HashMap<u32, u32>>,
    stop_text_watch: StopTextWatch,
}

impl GrowingSequence {
    /// Starts a sequence whose answer begins with `prefix`. `stream` and `sample` select the random stream.
    pub fn new(
        prompt: &[u32],
        prefix: &[u32],
        settings: &GenerationSettings,
        context: usize,
        stream: u64,
        sample: u64,
    ) -> Self {
        let wanted = settings.max_answer_tokens(prompt.len());
        let room = context - prompt.len();
        let purpose = if sample == 0 { "sample".to_string() } else { format!("sample {sample}") };
        let mut made = Self {
            ids: prompt.to_vec(),
            start: prompt.len(),
            max_answer_tokens: wanted.min(room),
            limited_by_context: room < wanted,
            log_probs: Vec::new(),
            rng: rng::stream(settings.seed, &purpose, stream),
            counts: settings.has_penalties().then(|| prompt.iter().map(|id| (*id, 0)).collect()),
            stop_text_watch: StopTextWatch::default(),
        };
        // A forced token has probability 1.
        prefix.iter().for_each(|id| made.append(*id, 0.0));
        made
    }

    /// Returns the most tokens of prompt and answer together.
    pub fn max_length(&self) -> usize {
        self.start + self.max_answer_tokens
    }

    /// Returns the last token of prompt and answer.
    pub fn last_id(&self) -> i64 {
        i64::from(self.ids[self.ids.len() - 1])
    }

    /// Returns the next random number of this sequence, uniform in [0, 1).
    pub fn draw_uniform(&mut self) -> f64 {
        self.rng.random()
    }

    /// Appends a token without checking whether it ends the answer.
    pub fn append(&mut self, id: u32, log_prob: f32) {
        self.ids.push(id);
        self.log_probs.push(log_prob);
        if let Some(counts) = &mut self.counts {
            *counts.entry(id).or_default() += 1;
        }
    }

    /// Appends the next token. Returns the reason if the answer ends with it.
    pub fn push(
        &mut self,
        id: u32,
        log_prob: f32,
        settings: &GenerationSettings,
        decode: Option<DecodeFn>,
    ) -> Result<Option<StopReason>> {
        self.append(id, log_prob);
        let made = self.ids.len() - self.start;
        if settings.stop_ids.contains(&id) {
            return Ok(Some(StopReason::EndToken));
        }
        if let (Some(decode), false) = (decode, settings.stop_texts.is_empty()) {
            let hit = self.stop_text_watch.push(&self.ids[self.start..], &settings.stop_texts, decode)?;
            if hit && made >= settings.min_new_tokens {
                return Ok(Some(StopReason::Text));
            }
        }
        Ok((made >= self.max_answer_tokens).then_some(if self.limited_by_context {
            StopReason::Context
        } else {
            StopReason::Length
        }))
    }

    /// Adds the logit changes for the next token to `edits`, for row `row` of the logits.
    pub fn collect_edits(&self, settings: &GenerationSettings, row: usize, edits: &mut LogitEdits) {
        if let Some(counts) = &self.counts {
            for (&id, &times) in counts {
                if settings.repetition_penalty != 1.0 {
                    edits.scale(row, id);
                }
                let less = f64::from(times) * settings.frequency_penalty
                    + if times > 0 { settings.presence_penalty } else { 0.0 };
                if less != 0.0 {
                    edits.lower(row, id, less as f32);
                }
            }
        }
        let (ids, made) = (&self.ids, self.ids.len() - self.start);
        let n = settings.no_repeat_ngram;
        if n > 0 && ids.len() + 1 >= n {
            let last = &ids[ids.len() + 1 - n..];
            ids.windows(n).filter(|w| w[..n - 1] == *last).for_each(|w| edits.ban(row, w[n - 1]));
        }
        for word in &settings.bad_words {
            let (id, before) = word.split_last().expect("checked: a word has a token");
            // As in transformers, a bad word that is a stop token alone is ignored: the answer may still end.
            let stop = before.is_empty() && settings.stop_ids.contains(id);
            if !stop && ids.ends_with(before) {
                edits.ban(row, *id);
            }
        }
        if made < settings.min_new_tokens {
            settings.stop_ids.iter().for_each(|id| edits.ban(row, *id));
        }
        if let (Some(id), 1) = (settings.forced_bos, ids.len()) {
            edits.force(row, id);
        }
        if let (Some(id), true) = (settings.forced_eos, made + 1 == self.max_answer_tokens && !self.limited_by_context)
        {
            edits.force(row, id);
        }
    }

    /// Returns the finished answer.
    pub fn finish(
        self,
        stopped: StopReason,
        settings: &GenerationSettings,
        decode: Option<DecodeFn>,
    ) -> Result<GeneratedAnswer> {
        let tokens = self.ids[self.start..].to_vec();
        let text = match (stopped, decode) {
            (StopReason::Text, Some(decode)) => Some(super::stop::cut_at_stop(&decode(&tokens)?, &settings.stop_texts)),
            _ => None,
        };
        let log_probs = if settings.log_probs { self.log_probs } else { Vec::new() };
        Ok(GeneratedAnswer { tokens, log_probs, stop_reason: stopped, text, score: None })
    }
}
