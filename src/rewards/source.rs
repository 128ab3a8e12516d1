//! Defines the input and the output of a source of rewards.

use crate::data::chat::ChatTokenizer;
use crate::data::dataset::{PromptRow, PromptSet};
use crate::error::Result;
use crate::models::Model;

/// An answer to be scored, with its prompt.
#[derive(Debug, Clone, Copy)]
pub struct RewardInput<'a> {
    /// The prompt, with the columns of its row.
    pub prompt: &'a PromptRow,
    /// Text of the answer, without the stop token or stop text.
    pub answer: &'a str,
    /// Token ids of prompt and answer, with the stop token if one ended the answer.
    pub ids: &'a [u32],
    /// Number of tokens in the answer, without the stop token.
    pub tokens: usize,
}

/// The reward of a source that cannot judge an answer. As in TRL, it is left out of the weighted sum and of the
/// source's means. It is a NaN with bits of its own: a source that computes any other NaN is an error.
pub const ABSTAINED: f64 = f64::from_bits(0x7ff8_0000_0ab5_7a19);

/// A source of rewards.
pub trait RewardSource {
    /// Fails if a row lacks a column that the source reads. Called before the first step.
    fn check(&self, _prompts: &PromptSet) -> Result<()> {
        Ok(())
    }
    /// Fails if the source reads token ids with another tokenizer than the policy's.
    fn check_tokenizer(&self, _tokenizer: &ChatTokenizer) -> Result<()> {
        Ok(())
    }
    /// Returns a number, or [`ABSTAINED`], for each answer. `model` is the one being trained: a reward model may be an
    /// adapter on it.
    fn score(&mut self, model: &Model, answers: &[RewardInput]) -> Result<Vec<f64>>;
}
