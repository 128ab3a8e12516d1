//! Writes the tokenizer of a model that was trained with new tokens.

use super::companions::{TOKENIZER_FILES, copy_companion_files};
use crate::data::chat::{ChatTokenizer, NewToken, tokenizer_folder};
use crate::error::{Error, Result};
use crate::fsutil::{read_json, write_json};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file that every reader prefers.
const FILE: &str = "tokenizer.json";

/// Adds `tokens` to the tokenizer's files in `folder`, which are those of the base. `tokenizer` has the tokens already.
pub fn write_new_tokens(folder: &Path, tokens: &[NewToken], tokenizer: &ChatTokenizer) -> Result<()> {
    if tokens.is_empty() {
        return Ok(());
    }
    let file = folder.join(FILE);
    // A file is completed, so that all else in it stays as it is. A base with a tokenizer of an older form gets the file.
    let mut content: Map<String, Value> = match file.is_file() {
        true => read_json(&file)?,
        false => tokenizer.to_json()?,
    };
    let list = content.entry("added_tokens").or_insert_with(|| json!([]));
    let Value::Array(list) = list else {
        return Err(Error::user(format!("{}: `added_tokens` is no list", file.display()))
            .hint("the file is damaged: fetch it again with the model"));
    };
    let known: Vec<Value> = list.iter().map(|old| old["content"].clone()).collect();
    for token in tokens.iter().filter(|token| known.iter().all(|old| *old != token.text)) {
        let mut entry = flags(token);
        entry.insert("id".into(), json!(token.id));
        list.push(Value::Object(entry));
    }
    list.sort_by_key(|token| token["id"].as_u64());
    write_json(&file, &content)?;
    let config = folder.join("tokenizer_config.json");
    if !config.is_file() {
        return Ok(());
    }
    let mut settings: Map<String, Value> = read_json(&config)?;
    if let Some(Value::Object(decoder)) = settings.get_mut("added_tokens_decoder") {
        decoder.extend(tokens.iter().map(|token| (token.id.to_string(), Value::Object(flags(token)))));
        write_json(&config, &settings)?;
    }
    Ok(())
}

/// Returns a token's text and how it is found in texts, as the files write it.
fn flags(token: &NewToken) -> Map<String, Value> {
    let entry = json!({
        "content": token.text,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": !token.special,
        "special": token.special,
    });
    let Value::Object(entry) = entry else { unreachable!("an object was written") };
    entry
}

/// Copies the tokenizer of the adapters `parts` to the merged model in `folder`, if it has tokens that the one of `base`
/// lacks. Fails if two adapters have different ones.
pub fn inherit_tokens<'a>(folder: &Path, base: &Path, parts: impl Iterator<Item = &'a Path>) -> Result<()> {
    let mut found: Option<&Path> = None;
    for part in parts.filter(|part| tokenizer_folder(base, Some(part)).is_ok_and(|folder| folder == *part)) {
        if let Some(first) = found
            && tokenizer_folder(first, Some(part))? == part
        {
            return Err(Error::user(format!(
                "{} and {}: the adapters have different new tokens",
                first.display(),
                part.display()
            ))
            .hint("merge one of them into a model, and train the other on that"));
        }
        found.get_or_insert(part);
    }
    match found {
        Some(part) => copy_companion_files(part, folder, TOKENIZER_FILES),
        None => Ok(()),
    }
}
