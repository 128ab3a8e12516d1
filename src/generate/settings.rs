//! The options of generation, with the meaning and the order of transformers.

use crate::error::{Error, Result};

/// The options of generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSettings {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Most tokens of prompt and answer together.
    pub max_length: Option<usize>,
    /// Fewest tokens of an answer: no stop token or stop text ends it earlier.
    pub min_new_tokens: usize,
    /// Logits are divided by it before sampling; 0 takes the most likely token (greedy).
    pub temperature: f64,
    /// Sample from this many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Sample from the smallest set of most likely tokens whose probabilities add up to this; 1: all.
    pub top_p: f64,
    /// Sample from tokens whose probability is at least this share of the highest one; 0: all.
    pub min_p: f64,
    /// Random seed. Each row has its own random stream under it.
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// Texts that end an answer and are cut from it. They need a function to decode tokens (`with_decoder`).
    pub stop_texts: Vec<String>,
    /// The logit of each token that occurred in prompt or answer is divided by it if positive and multiplied if
    /// negative (Keskar et al. 2019, arXiv 1909.05858); 1: off.
    pub repetition_penalty: f64,
    /// Subtracted once from the logit of each token that occurred in the answer; 0: off.
    pub presence_penalty: f64,
    /// Subtracted from the logit of each token for every time it occurred in the answer; 0: off.
    pub frequency_penalty: f64,
    /// No sequence of this many tokens is repeated, prompt included; 0: off.
    pub no_repeat_ngram: usize,
    /// Sequences of tokens that are never generated. A stop token alone is still allowed.
    pub bad_words: Vec<Vec<u32>>,
    /// The token that must follow a prompt of one token.
    pub forced_bos: Option<u32>,
    /// The token that must end an answer of the maximum length.
    pub forced_eos: Option<u32>,
    /// Return the log-probability of each token under the distribution it was sampled from.
    pub log_probs: bool,
}

impl GenerationSettings {
    /// Returns settings that take the most likely token, without any rule.
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

    /// Returns true if the most likely token is taken instead of sampling.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Returns true if a penalty depends on the tokens that occurred before.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Returns the most tokens of an answer to a prompt of `prompt` tokens; 0: there is no room for one.
    pub(super) fn max_answer_tokens(&self, prompt: usize) -> usize {
        self.max_new_tokens.min(self.max_length.map_or(usize::MAX, |n| n.saturating_sub(prompt)))
    }

    /// Fails for values out of range, naming the command-line option.
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
