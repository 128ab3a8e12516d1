//! How an answer is made. The rules and their order are those of transformers' generation.

use crate::error::{Error, Result};

/// How an answer is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The longest answer, in tokens.
    pub max_new_tokens: usize,
    /// The longest sequence, prompt and answer together.
    pub max_length: Option<usize>,
    /// No stop token or stop text ends an answer before it has so many tokens.
    pub min_new_tokens: usize,
    /// Logits are divided by it; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Only so many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the fewest most likely tokens whose probabilities reach this sum; 1: all.
    pub top_p: f64,
    /// Only tokens at least this share as likely as the most likely one; 0: all.
    pub min_p: f64,
    /// Chooses the random streams, one a row.
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// Texts that end an answer and are no part of it; they need a way to decode (`Engine::with_text`).
    pub stop_texts: Vec<String>,
    /// Logits of tokens that occurred, prompt included, are divided by it where positive and multiplied where
    /// negative (Keskar et al. 2019, arXiv 1909.05858); 1: off.
    pub repetition_penalty: f64,
    /// Taken once from the logits of tokens that the answer has; 0: off.
    pub presence_penalty: f64,
    /// Taken from the logits of tokens that the answer has, once for each time; 0: off.
    pub frequency_penalty: f64,
    /// No run of so many tokens comes twice, prompt included; 0: off.
    pub no_repeat_ngram: usize,
    /// Sequences of tokens that never come; a stop token by itself still may.
    pub bad_words: Vec<Vec<u32>>,
    /// The token after a prompt of one token.
    pub forced_bos: Option<u32>,
    /// The last token of an answer that reaches its longest length.
    pub forced_eos: Option<u32>,
    /// Report the log-probability of each token under the distribution it was drawn from.
    pub log_probs: bool,
}

impl Settings {
    /// The most likely token each time.
    pub fn greedy(max_new_tokens: usize, stop_ids: &[u32]) -> Self {
        Self {
            max_new_tokens,
            max_length: None,
            min_new_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            stop_ids: stop_ids.to_vec(),
            stop_texts: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram: 0,
            bad_words: Vec::new(),
            forced_bos: None,
            forced_eos: None,
            log_probs: false,
        }
    }

    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether what came before changes the logits of tokens, not only whether they may come.
    pub(super) fn counts_tokens(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The longest answer to a prompt of so many tokens; 0: there is no room for one.
    pub(super) fn longest_answer(&self, prompt: usize) -> usize {
        self.max_new_tokens.min(self.max_length.map_or(usize::MAX, |n| n.saturating_sub(prompt)))
    }

    /// Values that make no sense are an error.
    pub fn check(&self) -> Result<()> {
        let fine = |name: &str, right: bool, expected: &str, found: &dyn std::fmt::Display| match right {
            true => Ok(()),
            false => Err(Error::user(format!("{name} must be {expected}, found {found}"))),
        };
        let number = |name: &str, x: f64| fine(name, x.is_finite(), "a number", &x);
        fine("max-new-tokens", self.max_new_tokens > 0, "1 or more", &self.max_new_tokens)?;
        let t = self.temperature;
        fine("temperature", t.is_finite() && t >= 0.0, "0 (greedy) or more", &t)?;
        fine("top-p", self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1", &self.top_p)?;
        fine("min-p", (0.0..=1.0).contains(&self.min_p), "from 0 to 1", &self.min_p)?;
        let penalty = self.repetition_penalty;
        fine("repetition-penalty", penalty.is_finite() && penalty > 0.0, "above 0 (1: off)", &penalty)?;
        number("presence-penalty", self.presence_penalty)?;
        number("frequency-penalty", self.frequency_penalty)?;
        fine("bad-words", self.bad_words.iter().all(|w| !w.is_empty()), "at least one token each", &"an empty one")?;
        fine("stop", self.stop_texts.iter().all(|t| !t.is_empty()), "text", &"an empty one")?;
        let most = self.max_new_tokens;
        fine(
            "min-new-tokens",
            self.min_new_tokens <= most,
            &format!("at most {most} (max-new-tokens)"),
            &self.min_new_tokens,
        )
    }
}
