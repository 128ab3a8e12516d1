//! Byte-level BPE tokenizers, built from GPT-2's two files.
//!
//! Invariant: every byte is a token, so every text can be encoded. A directory whose way of splitting text is not
//! certain is refused, because a wrong split silently gives wrong ids.

use super::added_tokens::TokenizerSettings;
use crate::data::source::RowColumns;
use crate::error::{Error, Result};
use crate::fsutil;
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// The token that begins, ends and separates texts if the tokenizer's settings name none.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Files of older model directories.
const VOCAB: &str = "vocab.json";

const MERGES: &str = "merges.txt";

/// Returns true if the directory has a vocabulary and merges, which [`from_directory`] reads.
pub(in crate::data) fn in_directory(folder: &Path) -> bool {
    folder.join(VOCAB).is_file() && folder.join(MERGES).is_file()
}

/// Builds GPT-2's tokenizer from `vocab.json` and `merges.txt` as transformers does; `named` are its special tokens.
///
/// Errors: the directory is of another class of tokenizer. How text is split depends on the class and is not written in
/// the two files; only GPT-2's way is implemented.
pub(in crate::data) fn from_directory(
    folder: &Path,
    settings: &TokenizerSettings,
    named: &RowColumns,
) -> Result<Tokenizer> {
    let config = &settings.config;
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    let model = folder.join("config.json");
    let model: RowColumns = if model.is_file() { fsutil::read_json(&model)? } else { RowColumns::new() };
    let gpt2 = match class {
        Some(class) => class == "GPT2Tokenizer" || class == "GPT2TokenizerFast",
        None => model.get("model_type").is_none_or(|m| m == "gpt2"),
    };
    let refuse = |what: String| {
        Err(Error::user(format!("{}: {what}", folder.display())).hint(
            "save it as tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        ))
    };
    if !gpt2 {
        let named = class.or_else(|| model.get("model_type")?.as_str()).unwrap_or("unknown");
        return refuse(format!(
            "no tokenizer.json; {VOCAB} with {MERGES} can be read for gpt2 only, not for `{named}`"
        ));
    }
    let (vocab, merges) = (folder.join(VOCAB), folder.join(MERGES));
    let bpe = match (vocab.to_str(), merges.to_str()) {
        (Some(v), Some(m)) => BPE::from_file(v, m).build(),
        _ => return Err(Error::user(format!("{}: the path is not UTF-8", folder.display()))),
    };
    let bpe = bpe.map_err(|e| {
        Error::user(format!("{}: {e}", vocab.display()))
            .hint("vocab.json and merges.txt must belong to the same tokenizer")
    })?;
    let mut tokenizer = Tokenizer::new(bpe);
    let space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if let Some((content, id)) = settings.add_missing_tokens(&mut tokenizer, named)?.first() {
        return Err(Error::user(format!(
            "{}: the added token `{content}` should have id {id}, which the vocabulary does not leave free",
            folder.display()
        ))
        .hint("vocab.json and the list of added tokens must belong to the same tokenizer"));
    }
    Ok(tokenizer)
}

/// Adds GPT-2's special tokens to those that the directory names.
pub(in crate::data) fn default_specials(specials: &mut RowColumns) {
    for name in ["bos_token", "eos_token", "unk_token"] {
        specials.entry(name).or_insert(json!(END_OF_TEXT));
    }
}
