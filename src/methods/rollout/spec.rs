//! What a recipe says about the answers that a method draws and learns from.

use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How answers are drawn. There is no top-k, top-p or penalty: what is learnt is the ratio of a token's probabilities
/// before and after, and both must be of the whole distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSpec {
    /// Prompts of one draw.
    #[schemars(range(min = 1))]
    pub prompts: usize,
    /// The longest answer, in tokens; a prompt may have `batch.max_len` less this.
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
    /// Logits are divided by it, when answers are drawn and when they are learnt.
    #[schemars(range(min = 0.01))]
    pub temperature: f64,
    /// Texts that end an answer and are no part of it, beside the model's stop tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Taken from the reward of an answer that neither a stop token nor a stop text ended.
    #[schemars(range(min = 0.0))]
    pub missing_eos_penalty: f64,
    /// The temperature at which validation prompts are answered; 0: the most likely token each time.
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
    /// The longest prompt that leaves room for an answer, where both may have `max_len` tokens together.
    pub fn longest_prompt(&self, max_len: usize) -> Result<usize> {
        max_len.checked_sub(self.max_new_tokens).filter(|n| *n > 0).ok_or_else(|| {
            Error::user(format!(
                "batch.max_len {max_len} leaves no room for a prompt before an answer of {} tokens",
                self.max_new_tokens
            ))
            .hint("raise batch.max_len, or lower sampling.max_new_tokens")
        })
    }
}

/// Where a run is in trouble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSpec {
    /// The run stops and keeps its best checkpoint when answers are further than this from the reference: nats an
    /// answer, `objective/kl`. The reference is asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kl: Option<f64>,
    /// An alarm is given when log-probabilities of drawing and of learning differ by more than this on the mean.
    #[schemars(range(min = 0.0))]
    pub drift: f64,
}

impl Default for LimitSpec {
    fn default() -> Self {
        Self { kl: None, drift: 0.1 }
    }
}
