//! A generated answer, and why it ended.

use crate::error::Result;

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
    /// Why the answer ended.
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
