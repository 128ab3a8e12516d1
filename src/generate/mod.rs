//! Generates answers: sampling and batched decoding with a key/value cache.
//!
//! settings: all options of generation. engine: continuous batching, which takes requests and returns answers as they
//! finish. beam: beam search. session: one conversation that keeps its cache. sampler: chooses the next token from
//! logits. The rules over logits are penalties, forbidden and forced tokens. stop: stop texts. sequence: one sequence
//! as it grows.
//!
//! Prompts and answers are token ids; to find stop texts, the caller gives a function that decodes them. Nothing here
//! prints. Invariant: a row's answer does not depend on the rows decoded together with it.

pub mod beam;
pub mod engine;
mod logit_rules;
pub mod sampler;
mod sequence;
pub mod session;
pub mod settings;
pub mod stop;

pub use beam::{BeamEarlyStopping, BeamSettings};
pub use engine::{BatchLimits, DecodingStep, Engine, FinishedAnswer, GenerationRequest, complete};
pub use session::ChatSession;
pub use settings::GenerationSettings;

use crate::error::{Error, Result};
use crate::models::Model;

/// A function that decodes token ids to text.
pub type DecodeFn<'a> = &'a dyn Fn(&[u32]) -> Result<String>;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model generated a stop token.
    EndToken,
    /// A stop text was generated.
    Text,
    /// The answer reached `max_new_tokens`, or the sequence `max_length`.
    Length,
    /// The model's context is full.
    Context,
    /// The caller stopped it.
    Interrupted,
}

impl StopReason {
    /// Returns the name in files: `stop` (a token or a text), `length`, `context`, `interrupted`.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::EndToken | StopReason::Text => "stop",
            StopReason::Length => "length",
            StopReason::Context => "context",
            StopReason::Interrupted => "interrupted",
        }
    }
}

/// A generated answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedAnswer {
    /// Token ids, including the stop token, or the tokens of the stop text, that ended the answer.
    pub tokens: Vec<u32>,
    /// ln p of each token under the distribution it was sampled from: after the rules, temperature, top-k, top-p and
    /// min-p. Forced tokens have 0. Empty unless the settings ask for it.
    pub log_probs: Vec<f32>,
    pub stop_reason: StopReason,
    /// The text before the stop text, if one ended the answer.
    pub text: Option<String>,
    /// Beam search only: sum of log-probabilities / length^length_penalty.
    pub score: Option<f32>,
}

impl GeneratedAnswer {
    /// Returns the tokens without the stop token.
    pub fn answer_tokens(&self) -> &[u32] {
        match self.stop_reason {
            StopReason::EndToken => &self.tokens[..self.tokens.len() - 1],
            _ => &self.tokens,
        }
    }
}

/// Returns the most tokens that a sequence of this model may have, prompt and answer together.
pub fn max_sequence_tokens(model: &Model) -> usize {
    let limits = [model.context_limit(), model.config().max_position_embeddings];
    limits.into_iter().flatten().min().map_or(usize::MAX, |n| n.max(0) as usize)
}

/// Fails if the prompt is empty, leaves no room for an answer, or has ids outside the vocabulary. `name` is the
/// prompt's name in the error.
fn check_prompt(model: &Model, prompt: &[u32], settings: &GenerationSettings, name: &str) -> Result<()> {
    let (context, vocabulary) = (max_sequence_tokens(model), model.config().vocab_size);
    if prompt.is_empty() {
        return Err(Error::user(format!("{name} is empty")).hint("a model continues at least one token"));
    }
    if prompt.len() >= context {
        return Err(Error::user(format!("{name} has {} tokens, the model's context is {context}", prompt.len()))
            .hint("shorten the prompt; an answer needs room too"));
    }
    if settings.max_answer_tokens(prompt.len()) == 0 {
        let most = settings.max_length.unwrap_or(0);
        return Err(Error::user(format!("{name} has {} tokens, --max-length {most} leaves no room", prompt.len()))
            .hint("--max-length counts the prompt; --max-new-tokens counts the answer alone"));
    }
    if let Some(id) = prompt.iter().find(|id| i64::from(**id) >= vocabulary) {
        return Err(Error::user(format!("{name} has token {id}, the model's vocabulary ends at {}", vocabulary - 1))
            .hint("does tokenizer.json belong to this model?"));
    }
    Ok(())
}

/// Fails if there are stop texts but no function to decode tokens.
fn check_decoder(settings: &GenerationSettings, decode: Option<DecodeFn>) -> Result<()> {
    if settings.stop_texts.is_empty() || decode.is_some() {
        return Ok(());
    }
    Err(Error::bug("stop texts without a function to decode tokens"))
}
