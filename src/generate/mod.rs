//! Generation: sampling and batched decoding over a key/value cache.
//!
//! sampler: logits -> next token. decode: many prompts at once. session: one conversation that keeps its cache.
//! Nothing here knows text: prompts and answers are token ids.

pub mod decode;
pub mod sampler;
pub mod session;

pub use decode::complete;
pub use session::Session;

use crate::error::{Error, Result};
use crate::models::Model;

/// How an answer is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Logits are divided by it; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Only so many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the fewest most likely tokens whose probabilities reach this sum; 1: all.
    pub top_p: f64,
    /// Chooses the random streams, one a row.
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

impl Settings {
    /// The most likely token each time.
    pub fn greedy(max_new_tokens: usize, stop_ids: &[u32]) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, stop_ids: stop_ids.to_vec() }
    }

    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Values that make no sense are an error.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, expected: &str, found: String| {
            Err(Error::user(format!("{name} must be {expected}, found {found}")))
        };
        if self.max_new_tokens == 0 {
            return wrong("max-new-tokens", "1 or more", "0".into());
        }
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return wrong("temperature", "0 (greedy) or more", self.temperature.to_string());
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p", "above 0 and at most 1", self.top_p.to_string());
        }
        Ok(())
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it with one of the stop tokens.
    EndToken,
    /// It has `max_new_tokens`.
    Length,
    /// The model's context is full.
    Context,
    /// The caller wanted no more.
    Interrupted,
}

impl Stop {
    /// The name in files: `stop`, `length`, `context`, `interrupted`.
    pub fn name(self) -> &'static str {
        match self {
            Stop::EndToken => "stop",
            Stop::Length => "length",
            Stop::Context => "context",
            Stop::Interrupted => "interrupted",
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// With the stop token that ended it, if one did.
    pub tokens: Vec<u32>,
    pub stopped: Stop,
}

impl Completion {
    /// The tokens without the stop token.
    pub fn answer(&self) -> &[u32] {
        match self.stopped {
            Stop::EndToken => &self.tokens[..self.tokens.len() - 1],
            _ => &self.tokens,
        }
    }
}

/// How many tokens a sequence of this model may have.
fn context(model: &Model) -> usize {
    let limits = [model.context_limit(), model.config().max_position_embeddings];
    limits.into_iter().flatten().min().map_or(usize::MAX, |n| n.max(0) as usize)
}

/// A prompt must have a token, leave room for one more, and hold ids that the model knows. `name` stands in the error.
fn check_prompt(model: &Model, prompt: &[u32], name: &str) -> Result<()> {
    let (context, vocabulary) = (context(model), model.config().vocab_size);
    if prompt.is_empty() {
        return Err(Error::user(format!("{name} is empty")).hint("a model continues at least one token"));
    }
    if prompt.len() >= context {
        return Err(Error::user(format!("{name} has {} tokens, the model's context {context}", prompt.len()))
            .hint("shorten the prompt; an answer needs room too"));
    }
    if let Some(id) = prompt.iter().find(|id| i64::from(**id) >= vocabulary) {
        return Err(Error::user(format!("{name} holds token {id}, the model's vocabulary ends at {}", vocabulary - 1))
            .hint("is tokenizer.json the one of this model?"));
    }
    Ok(())
}

/// Why an answer of `made` tokens, the last being `last`, ends now; `None` while it goes on.
fn ending(settings: &Settings, context: usize, prompt: usize, made: usize, last: u32) -> Option<Stop> {
    if settings.stop_ids.contains(&last) {
        Some(Stop::EndToken)
    } else if made >= settings.max_new_tokens {
        Some(Stop::Length)
    } else if prompt + made >= context {
        Some(Stop::Context)
    } else {
        None
    }
}
