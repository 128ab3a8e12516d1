//! Generation: sampling and batched decoding over a key/value cache.
//!
//! settings: how an answer is made. engine: requests in, answers out as they finish (continuous batching). beam: beam
//! search. session: one conversation that keeps its cache. sampler: logits -> next token. rules: penalties, forbidden and
//! forced tokens. stop: stop texts. sequence: one sequence as it grows.
//!
//! Prompts and answers are token ids; text is known only through the `Decode` that a caller gives for stop texts.
//! Nothing here prints. Invariant: a row's answer does not depend on the rows decoded beside it.

pub mod beam;
pub mod engine;
mod rules;
pub mod sampler;
mod sequence;
pub mod session;
pub mod settings;
pub mod stop;

pub use beam::{Beams, EarlyStopping};
pub use engine::{Engine, Finished, Limits, Request, Step, complete};
pub use session::Session;
pub use settings::Settings;

use crate::error::{Error, Result};
use crate::models::Model;

/// How tokens become text.
pub type Decode<'a> = &'a dyn Fn(&[u32]) -> Result<String>;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it with one of the stop tokens.
    EndToken,
    /// One of the stop texts came.
    Text,
    /// It has `max_new_tokens`, or the sequence `max_length`.
    Length,
    /// The model's context is full.
    Context,
    /// The caller wanted no more.
    Interrupted,
}

impl Stop {
    /// The name in files: `stop` (a token or a text), `length`, `context`, `interrupted`.
    pub fn name(self) -> &'static str {
        match self {
            Stop::EndToken | Stop::Text => "stop",
            Stop::Length => "length",
            Stop::Context => "context",
            Stop::Interrupted => "interrupted",
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// With the stop token or the tokens of the stop text that ended it, if one did.
    pub tokens: Vec<u32>,
    /// ln p of each token under the distribution it was drawn from: after rules, temperature and the cuts of top-k,
    /// top-p and min-p. Empty unless asked for. Forced tokens have 0.
    pub log_probs: Vec<f32>,
    pub stopped: Stop,
    /// The text before the stop text, where one ended it.
    pub text: Option<String>,
    /// Beam search: the sum of log-probabilities over length^penalty.
    pub score: Option<f32>,
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
pub fn room(model: &Model) -> usize {
    let limits = [model.context_limit(), model.config().max_position_embeddings];
    limits.into_iter().flatten().min().map_or(usize::MAX, |n| n.max(0) as usize)
}

/// A prompt must have a token, leave room for one more, and hold ids that the model knows. `name` stands in the error.
fn check_prompt(model: &Model, prompt: &[u32], settings: &Settings, name: &str) -> Result<()> {
    let (context, vocabulary) = (room(model), model.config().vocab_size);
    if prompt.is_empty() {
        return Err(Error::user(format!("{name} is empty")).hint("a model continues at least one token"));
    }
    if prompt.len() >= context {
        return Err(Error::user(format!("{name} has {} tokens, the model's context {context}", prompt.len()))
            .hint("shorten the prompt; an answer needs room too"));
    }
    if settings.longest_answer(prompt.len()) == 0 {
        let most = settings.max_length.unwrap_or(0);
        return Err(Error::user(format!("{name} has {} tokens, --max-length {most} leaves no room", prompt.len()))
            .hint("--max-length counts the prompt; --max-new-tokens counts the answer alone"));
    }
    if let Some(id) = prompt.iter().find(|id| i64::from(**id) >= vocabulary) {
        return Err(Error::user(format!("{name} holds token {id}, the model's vocabulary ends at {}", vocabulary - 1))
            .hint("is tokenizer.json the one of this model?"));
    }
    Ok(())
}

/// Stop texts need a way to decode.
fn check_text(settings: &Settings, decode: Option<Decode>) -> Result<()> {
    if settings.stop_texts.is_empty() || decode.is_some() {
        return Ok(());
    }
    Err(Error::bug("stop texts without a way to decode"))
}
