//! Checks that a model can answer a prompt.

use super::answer::DecodeFn;
use super::settings::GenerationSettings;
use crate::error::{Error, Result};
use crate::models::Model;

/// Returns the most tokens that a sequence of this model may have, prompt and answer together. Virtual tokens of the
/// active adapter are not among them.
pub fn max_sequence_tokens(model: &Model) -> usize {
    model.longest_sequence().map_or(usize::MAX, |n| n.max(0) as usize)
}

/// Fails if the prompt is empty, leaves no room for an answer, or has ids outside the vocabulary. `name` is the
/// prompt's name in the error.
pub(super) fn check_prompt(model: &Model, prompt: &[u32], settings: &GenerationSettings, name: &str) -> Result<()> {
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
pub(super) fn check_decoder(settings: &GenerationSettings, decode: Option<DecodeFn>) -> Result<()> {
    if settings.stop_texts.is_empty() || decode.is_some() {
        return Ok(());
    }
    Err(Error::bug("stop texts without a function to decode tokens"))
}
