//! One sequence while it is generated: its tokens, its random stream, the logit changes for its next token, and its
//! end.

use super::rules::Edits;
use super::stop::Watch;
use super::{Completion, Decode, Settings, Stop};
use crate::error::Result;
use crate::rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// A prompt with the answer generated so far.
#[derive(Clone)]
pub(super) struct Sequence {
    /// Token ids of prompt and answer.
    pub ids: Vec<u32>,
    /// Index in `ids` at which the answer begins.
    start: usize,
    /// Most tokens of the answer.
    longest: usize,
    /// Whether `longest` is set by the model's context rather than by the settings.
    full: bool,
    log_probs: Vec<f32>,
    chance: ChaCha8Rng,
    /// How often each token occurred in the answer (0: in the prompt only). `None` if no penalty needs it.
    counts: Option<HashMap<u32, u32>>,
    watch: Watch,
}

impl Sequence {
    /// Starts a sequence whose answer begins with `prefix`. `stream` and `sample` select the random stream.
    pub fn new(prompt: &[u32], prefix: &[u32], settings: &Settings, context: usize, stream: u64, sample: u64) -> Self {
        let wanted = settings.longest_answer(prompt.len());
        let room = context - prompt.len();
        let purpose = if sample == 0 { "sample".to_string() } else { format!("sample {sample}") };
        let mut made = Self {
            ids: prompt.to_vec(),
            start: prompt.len(),
            longest: wanted.min(room),
            full: room < wanted,
            log_probs: Vec::new(),
            chance: rng::stream(settings.seed, &purpose, stream),
            counts: settings.counts_tokens().then(|| prompt.iter().map(|id| (*id, 0)).collect()),
            watch: Watch::default(),
        };
        // A forced token has probability 1.
        prefix.iter().for_each(|id| made.append(*id, 0.0));
        made
    }

    /// Returns the most tokens of prompt and answer together.
    pub fn longest(&self) -> usize {
        self.start + self.longest
    }

    /// Returns the next random number of this sequence, uniform in [0, 1).
    pub fn draw(&mut self) -> f64 {
        self.chance.random()
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
        settings: &Settings,
        decode: Option<Decode>,
    ) -> Result<Option<Stop>> {
        self.append(id, log_prob);
        let made = self.ids.len() - self.start;
        if settings.stop_ids.contains(&id) {
            return Ok(Some(Stop::EndToken));
        }
        if let (Some(decode), false) = (decode, settings.stop_texts.is_empty()) {
            let hit = self.watch.push(&self.ids[self.start..], &settings.stop_texts, decode)?;
            if hit && made >= settings.min_new_tokens {
                return Ok(Some(Stop::Text));
            }
        }
        Ok((made >= self.longest).then_some(if self.full { Stop::Context } else { Stop::Length }))
    }

    /// Adds the logit changes for the next token to `edits`, for row `row` of the logits.
    pub fn rules(&self, settings: &Settings, row: usize, edits: &mut Edits) {
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
        if let (Some(id), true) = (settings.forced_eos, made + 1 == self.longest && !self.full) {
            edits.force(row, id);
        }
    }

    /// Returns the finished answer.
    pub fn finish(self, stopped: Stop, settings: &Settings, decode: Option<Decode>) -> Result<Completion> {
        let tokens = self.ids[self.start..].to_vec();
        let text = match (stopped, decode) {
            (Stop::Text, Some(decode)) => Some(super::stop::trimmed(&decode(&tokens)?, &settings.stop_texts)),
            _ => None,
        };
        let log_probs = if settings.log_probs { self.log_probs } else { Vec::new() };
        Ok(Completion { tokens, log_probs, stopped, text, score: None })
    }
}
