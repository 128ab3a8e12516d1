//! One sequence as it grows: its tokens, its random stream, what the rules ask of its next token, and when it ends.

use super::rules::Edits;
use super::stop::Watch;
use super::{Completion, Decode, Settings, Stop};
use crate::error::Result;
use crate::rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// A prompt and the answer so far.
#[derive(Clone)]
pub(super) struct Sequence {
    /// Prompt and answer.
    pub ids: Vec<u32>,
    /// Where the answer begins.
    start: usize,
    /// Tokens that the answer may have.
    longest: usize,
    /// Whether `longest` is the end of the model's context rather than the caller's wish.
    full: bool,
    log_probs: Vec<f32>,
    chance: ChaCha8Rng,
    /// How often each token occurred in the answer (0: in the prompt only); kept where a rule asks.
    counts: Option<HashMap<u32, u32>>,
    watch: Watch,
}

impl Sequence {
    /// `prefix` begins the answer. `stream` and `sample` choose the random stream.
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
        // What is forced has probability 1.
        prefix.iter().for_each(|id| made.append(*id, 0.0));
        made
    }

    /// Tokens that prompt and answer may have together.
    pub fn longest(&self) -> usize {
        self.start + self.longest
    }

    /// Uniform in [0, 1).
    pub fn draw(&mut self) -> f64 {
        self.chance.random()
    }

    pub fn append(&mut self, id: u32, log_prob: f32) {
        self.ids.push(id);
        self.log_probs.push(log_prob);
        if let Some(counts) = &mut self.counts {
            *counts.entry(id).or_default() += 1;
        }
    }

    /// Takes the next token; whether the answer ends with it, and why.
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

    /// Adds what the rules ask of the next token to `edits`, for row `row` of the logits.
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
            // A stop token alone is no word: it may end an answer, as in transformers.
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

    /// The answer as the caller gets it.
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
