//! Writes the stop tokens of a trained model into its files, so that other programs stop where ft does.
//!
//! A base model's files often name only the token that ends a text, while its chat template ends a turn with another
//! one. ft finds the latter by rendering the template. Other programs read generation_config.json, and some
//! (llama.cpp's converter) only `eos_token` of tokenizer_config.json.

use crate::data::chat::ChatTokenizer;
use crate::error::{Error, Result};
use crate::fsutil::{read_json, write_json};
use crate::model_files::{CONFIG, ModelFiles};
use serde_json::{Map, Value, json};
use std::path::Path;

const GENERATION: &str = "generation_config.json";

/// Adds the tokens `taught` to those that end an answer of the model in `folder`; `base` is the folder it was trained
/// from. The first of them becomes `eos_token`, unless a chat template (one of `templates` or the folder's own) uses
/// the variable `eos_token`: then its text would change.
pub fn write_stop_tokens(folder: &Path, base: &Path, taught: &[u32], templates: &[&str]) -> Result<()> {
    let Some(first) = taught.first() else { return Ok(()) };
    let mut generation = generation_settings(folder, base)?;
    let mut stops = ids(generation.get("eos_token_id"));
    stops.extend(taught.iter().filter(|id| !stops.contains(id)).copied().collect::<Vec<_>>());
    generation.insert("eos_token_id".into(), if let [one] = stops[..] { json!(one) } else { json!(stops) });
    write_json(&folder.join(GENERATION), &generation)?;
    if !ChatTokenizer::in_directory(folder) {
        return Ok(());
    }
    let tokenizer = ChatTokenizer::load(folder, None)?;
    let own = tokenizer.template().map(|t| t.source());
    let named = templates.iter().copied().chain(own).any(|t| t.contains("eos_token"));
    let token = tokenizer.token(*first).ok_or_else(|| Error::bug(format!("stop token {first} has no text")))?;
    if named || tokenizer.eos() == Some(*first) {
        return Ok(());
    }
    for (name, needed) in [("tokenizer_config.json", true), ("special_tokens_map.json", false)] {
        let file = folder.join(name);
        let mut config: Map<String, Value> = if file.is_file() { read_json(&file)? } else { Map::new() };
        if needed || config.contains_key("eos_token") {
            config.insert("eos_token".into(), json!(token));
            write_json(&file, &config)?;
        }
    }
    Ok(())
}

/// Adds the stop tokens that the adapters `parts`, merged into the model in `folder`, have and `base` lacks.
pub fn inherit_stop_tokens<'a>(folder: &Path, base: &Path, parts: impl Iterator<Item = &'a Path>) -> Result<()> {
    let known = ids(generation_settings(base, base)?.get("eos_token_id"));
    let mut taught: Vec<u32> = Vec::new();
    for part in parts.map(|p| p.join(GENERATION)).filter(|f| f.is_file()) {
        let stops = ids(read_json::<Map<String, Value>>(&part)?.get("eos_token_id"));
        taught
            .extend(stops.iter().filter(|id| !known.contains(id) && !taught.contains(id)).copied().collect::<Vec<_>>());
    }
    write_stop_tokens(folder, base, &taught, &[])
}

/// Returns generation_config.json of the folder or of its base. If it names no end token, readers use that of
/// config.json, so it is added here. If neither folder has the file, returns the special tokens of config.json.
fn generation_settings(folder: &Path, base: &Path) -> Result<Map<String, Value>> {
    let (own, base) = (ModelFiles::open(folder)?, ModelFiles::open(base)?);
    let config: Map<String, Value> = base.json_or_default(CONFIG)?;
    let mut existing = None;
    for files in [own, base] {
        if existing.is_none() && files.read(GENERATION)?.is_some() {
            existing = Some(files.json_or_default(GENERATION)?);
        }
    }
    let (mut settings, from_config): (Map<String, Value>, &[&str]) = match existing {
        Some(settings) => (settings, &["eos_token_id"]),
        None => (Map::new(), &["bos_token_id", "eos_token_id", "pad_token_id"]),
    };
    for key in from_config {
        if let (None | Some(Value::Null), Some(value)) = (settings.get(*key), config.get(*key).filter(|v| !v.is_null()))
        {
            settings.insert((*key).into(), value.clone());
        }
    }
    Ok(settings)
}

/// Reads a token id or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_tokens_of_config_json_count_if_generation_config_json_names_none() {
        for (generation, expected) in [
            (json!({"temperature": 0.5}), json!({"temperature": 0.5, "eos_token_id": [7, 2]})),
            (json!({"eos_token_id": null}), json!({"eos_token_id": [7, 2]})),
            (json!({"eos_token_id": 1}), json!({"eos_token_id": [1, 2]})),
        ] {
            let (base, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let config = json!({"eos_token_id": 7, "bos_token_id": 6});
            write_json(&base.path().join("config.json"), &config).unwrap();
            write_json(&base.path().join(GENERATION), &generation).unwrap();
            write_stop_tokens(out.path(), base.path(), &[2], &[]).unwrap();
            assert_eq!(read_json::<Value>(&out.path().join(GENERATION)).unwrap(), expected);
        }
    }
}
