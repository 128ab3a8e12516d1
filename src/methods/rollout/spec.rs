//! The recipe's sections for sampling answers, and for alarms.

use crate::error::{Error, Result};
use crate::methods::parts::SampledAnswers;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How answers are sampled. There is no top-k, top-p or penalty: training uses the ratio of a token's probabilities
/// before and after, and both must belong to the whole distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSpec {
    /// Prompts per round of sampling.
    #[schemars(range(min = 1))]
    pub prompts: usize,
    /// Maximum length of an answer in tokens; a prompt may have at most `batch.max_len` minus this.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Logits are divided by this, both when answers are sampled and when they are trained on.
    #[schemars(range(min = 0.01))]
    pub temperature: f64,
    /// Texts that end an answer and are no part of it, in addition to the model's stop tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Subtracted from the reward of a truncated answer, which neither a stop token nor a stop text ended.
    #[schemars(range(min = 0.0))]
    pub missing_eos_penalty: f64,
    /// The temperature for answers to validation prompts; 0: greedy decoding.
    #[schemars(range(min = 0.0))]
    pub eval_temperature: f64,
}

impl Default for SamplingSpec {
    fn default() -> Self {
        Self {
            prompts: 8,
            max_new_tokens: 128,
            temperature: 1.0,
            stop: Vec::new(),
            missing_eos_penalty: 0.0,
            eval_temperature: 0.0,
        }
    }
}

impl SamplingSpec {
    /// Returns the answers that are sampled at a time: `answers` to each prompt of a round.
    pub fn sampled(&self, answers: usize) -> Option<SampledAnswers> {
        Some(SampledAnswers { count: (self.prompts * answers) as u64, new_tokens: self.max_new_tokens as u64 })
    }

    /// Returns the maximum length of a prompt in tokens, if prompt and answer together may have `max_len`. An error if
    /// no token is left for a prompt.
    pub fn longest_prompt(&self, max_len: usize) -> Result<usize> {
        max_len.checked_sub(self.max_new_tokens).filter(|n| *n > 0).ok_or_else(|| {
            Error::user(format!(
                "batch.max_len {max_len} leaves no room for a prompt if an answer may have {} tokens",
                self.max_new_tokens
            ))
            .hint("raise batch.max_len, or lower sampling.max_new_tokens")
        })
    }
}

/// Limits beyond which an alarm is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSpec {
    /// The run stops and keeps its best checkpoint if the KL divergence from the reference exceeds this, in nats per
    /// answer (`objective/kl`). A reference model is then needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kl: Option<f64>,
    /// An alarm is given if the log-probabilities of sampling and of training differ by more than this on average.
    #[schemars(range(min = 0.0))]
    pub drift: f64,
}

impl Default for LimitSpec {
    fn default() -> Self {
        Self { kl: None, drift: 0.1 }
    }
}
