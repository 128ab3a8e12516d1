//! Rows of the token embedding, and of an output head, that are trained in full: those of new or rarely used tokens
//! (`trainable_token_indices` of PEFT's LoRA, and its kind TRAINABLE_TOKENS).
//!
//! attach: how the layers get their rows and compute with them. update: merging.

mod attach;
mod update;

pub(super) use attach::AttachTokenRows;
pub(super) use update::TokenRowsUpdate;

use super::kind::HEAD;
use crate::error::{Error, Result};
use crate::nn::params::TOKEN_ROWS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the trained rows within the module of an embedding or head, in files of PEFT's TRAINABLE_TOKENS.
pub(super) const ROWS: &str = TOKEN_ROWS;
/// The same in files of its LoRA.
pub(super) const ROWS_BESIDE_LORA: &str = "token_adapter.trainable_tokens_delta";

/// A token, by its id or its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)] // leaves only: a number or a text
pub enum TokenName {
    /// Its id.
    Id(i64),
    /// Its text in the tokenizer, such as `<|tool|>`.
    Text(String),
}

/// The tokens whose rows an adapter trains in full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrainedRows {
    /// Rows of the embedding.
    pub embedding: Vec<i64>,
    /// Rows of an output head with a weight of its own.
    pub head: Vec<i64>,
}

impl TrainedRows {
    /// Returns the rows of a module: the output head, or the embedding. A file may have the rows of a head that shares
    /// the embedding's weight under the head's name.
    pub(super) fn of(&self, module: &str) -> &[i64] {
        match module.ends_with(HEAD) && !self.head.is_empty() {
            true => &self.head,
            false => &self.embedding,
        }
    }
}

/// Returns the id of a token, given its text; `None` if there is no such token.
pub type FindToken<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// Replaces texts by ids. Fails for a text that is no token; `key` is the setting, for the error.
pub(super) fn resolve(tokens: &mut [TokenName], key: &str, find: &FindToken) -> Result<()> {
    for token in tokens {
        if let TokenName::Text(text) = token {
            let id = find(text).ok_or_else(|| {
                Error::user(format!("{key}: the tokenizer has no token `{text}`"))
                    .hint("add it with model.new_tokens, or look at the tokens of a text with: ft tokenizer show")
            })?;
            *token = TokenName::Id(id.into());
        }
    }
    Ok(())
}

/// Adds the tokens that are not in the list.
pub(super) fn add(tokens: &mut Vec<TokenName>, ids: &[i64]) {
    for id in ids.iter().map(|id| TokenName::Id(*id)) {
        if !tokens.contains(&id) {
            tokens.push(id);
        }
    }
}

/// Returns the ids of tokens. Fails for a text that was not resolved: only the adapter that a run trains knows the tokenizer.
pub(super) fn ids(tokens: &[TokenName]) -> Result<Vec<i64>> {
    let id = |token: &TokenName| match token {
        TokenName::Id(id) => Ok(*id),
        TokenName::Text(text) => Err(Error::user(format!("the token `{text}` must be given by its id here"))
            .hint("the ids of a text's tokens: ft tokenizer show --model DIR TEXT")),
    };
    tokens.iter().map(id).collect()
}

/// Returns the ids in a list of PEFT's settings as tokens.
pub(super) fn of_ids(ids: Vec<i64>) -> Vec<TokenName> {
    ids.into_iter().map(TokenName::Id).collect()
}
