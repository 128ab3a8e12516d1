//! Hashes the files that a run reads: base model, tokenizer, and what the recipe's method names.

use super::hash::{FileDigest, FileHasher};
use crate::error::{Error, Result};
use crate::fsutil::io_error;
use crate::model_files::{TEMPLATES_FOLDER, gguf_files, is_gguf};
use crate::recipe::schema;
use crate::recipe::sections::Recipe;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// SentencePiece's own file. Locks of earlier versions do not record it.
pub const SENTENCEPIECE: &str = "tokenizer.model";

/// Files of a model folder that belong to the tokenizer.
pub const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    SENTENCEPIECE,
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Returns true for config and weights of a model, i.e. for the files that a run reads in addition to the tokenizer.
fn is_base(name: &str) -> bool {
    name == "config.json"
        || name == "generation_config.json"
        || name.ends_with(".safetensors")
        || name.ends_with(".safetensors.index.json")
}

/// Files of a model folder by name.
pub struct ModelFiles {
    /// Config and weights.
    pub base: BTreeMap<String, FileDigest>,
    /// Files of the tokenizer and the model's own templates.
    pub tokenizer: BTreeMap<String, FileDigest>,
}

/// Returns the names of all entries of a folder.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| io_error("reading folder", folder, e))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Hashes the files of a model folder. A model in GGUF has its GGUF files alone.
pub fn model_files(folder: &Path, hasher: &mut FileHasher) -> Result<ModelFiles> {
    let (mut base, mut tokenizer) = (BTreeMap::new(), BTreeMap::new());
    if is_gguf(folder) {
        for file in gguf_files(folder) {
            base.insert(file_name(&file), hasher.hash_file(&file)?);
        }
        return Ok(ModelFiles { base, tokenizer });
    }
    let mut names = entries(folder)?;
    if folder.join(TEMPLATES_FOLDER).is_dir() {
        names.extend(
            entries(&folder.join(TEMPLATES_FOLDER))?.into_iter().map(|name| format!("{TEMPLATES_FOLDER}/{name}")),
        );
    }
    names.sort();
    for name in names {
        let into = match () {
            () if TOKENIZER_FILES.contains(&name.as_str()) => &mut tokenizer,
            () if name.starts_with(TEMPLATES_FOLDER) && name.ends_with(".jinja") => &mut tokenizer,
            () if is_base(&name) => &mut base,
            () => continue,
        };
        let locked = hasher.hash_file(&folder.join(&name))?;
        into.insert(name, locked);
    }
    Ok(ModelFiles { base, tokenizer })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Hashes the files behind the paths in the recipe's `method` section: files themselves; of a model or adapter folder
/// its config, weights and tokenizer. Other folders (a teacher's cache) are left out: their readers check them.
pub fn method_files(recipe: &Recipe, hasher: &mut FileHasher) -> Result<BTreeMap<String, FileDigest>> {
    let mut paths = Vec::new();
    let value = serde_json::to_value(&recipe.method).map_err(|e| Error::bug(format!("recipe: {e}")))?;
    paths_below("method", &value, &mut paths);
    let mut found = BTreeMap::new();
    for (key, path) in paths {
        if path.is_file() {
            for file in gguf_files(&path) {
                let key = if file == path { key.clone() } else { format!("{key}: {}", file_name(&file)) };
                found.insert(key, hasher.hash_file(&file)?);
            }
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        let names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        if !names.iter().any(|n| n == "config.json" || n == ADAPTER) {
            continue;
        }
        for name in names.iter().filter(|n| is_base(n) || TOKENIZER_FILES.contains(&n.as_str()) || *n == ADAPTER) {
            found.insert(format!("{key}: {name}"), hasher.hash_file(&path.join(name))?);
        }
    }
    Ok(found)
}

const ADAPTER: &str = "adapter_config.json";

/// Collects the values below a recipe key that the schema declares as paths.
fn paths_below(key: &str, value: &Value, into: &mut Vec<(String, PathBuf)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, v)| paths_below(&format!("{key}.{name}"), v, into)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| paths_below(&format!("{key}.{i}"), v, into)),
        Value::String(text) if schema::key(key).is_some_and(|k| k.kind.ends_with("path")) => {
            into.push((key.to_string(), text.into()));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::hash::HashTrust;
    use crate::runs::recipe_hash::tests::plan;

    #[test]
    fn models_that_a_method_reads_are_locked_and_caches_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (file, text) in [
            ("teacher/config.json", "{}"),
            ("teacher/model.safetensors", "w"),
            ("teacher/notes.txt", "n"),
            ("taught/train-00000.safetensors", "c"),
        ] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), text).unwrap();
        }
        let distill = format!(
            "method={{distill: {{teachers: [{{path: {}}}], cache: {}}}}}",
            at("teacher").display(),
            at("taught").display()
        );
        let files = || method_files(&plan(&[&distill]).recipe, &mut FileHasher::open(HashTrust::Bytes)).unwrap();
        let then = files();
        let names: Vec<&str> = then.keys().map(String::as_str).collect();
        let teacher = "method.distill.teachers.0.path";
        assert_eq!(names, [format!("{teacher}: config.json"), format!("{teacher}: model.safetensors")]);
        std::fs::write(at("teacher/model.safetensors"), "other").unwrap();
        assert_ne!(files(), then);
    }
}
