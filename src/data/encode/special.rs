//! The tokens at the beginning and the end of an example.

use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};

/// Fails if the ids begin with two BOS tokens.
pub(super) fn check_bos(ids: &[u32], tokenizer: &ChatTokenizer) -> Result<()> {
    match (ids, tokenizer.bos()) {
        ([a, b, ..], Some(bos)) if *a == bos && *b == bos => {
            let token = tokenizer.token(bos).unwrap_or_default();
            Err(Error::user(format!("begins with {token} twice"))
                .hint("the text contains a BOS in addition to the one that the template or the tokenizer adds: remove it from the rows, or correct data.template"))
        }
        _ => Ok(()),
    }
}

pub(super) fn append_eos(ids: &mut Vec<u32>, tokenizer: &ChatTokenizer) -> Result<()> {
    let eos = tokenizer.eos().ok_or_else(|| {
        Error::user("the tokenizer names no EOS token, so the model would never learn to stop")
            .hint("set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json")
    })?;
    if ids.last() != Some(&eos) {
        ids.push(eos);
    }
    Ok(())
}
