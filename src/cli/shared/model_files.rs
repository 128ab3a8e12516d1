//! Hashes the files of a model or adapter folder that determine its answers, so that a partial file of answers is not
//! continued with another model that has the same path.

use ft::error::Result;
use ft::fsutil::io_error;
use ft::model_files::{TEMPLATES_FOLDER, gguf_files, is_gguf};
use ft::runs::hash::{FileHasher, HashTrust};
use ft::runs::inputs::TOKENIZER_FILES;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the SHA-256 of each file in `folder`, or of a GGUF file, that answers depend on: configs, weights, tokenizer and
/// templates.
/// Other files, such as the records of the run that made an adapter, are left out. The hash of a large file that looks
/// unchanged is remembered, so that only the first call reads the weights.
pub fn hash_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut hasher = FileHasher::open(HashTrust::Remembered);
    let mut hashes = BTreeMap::new();
    if is_gguf(folder) {
        for file in gguf_files(folder) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hashes.insert(name, hasher.hash_file(&file)?.sha256);
        }
        hasher.close();
        return Ok(hashes);
    }
    for name in file_names(folder)? {
        let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let tokenizer = TOKENIZER_FILES.contains(&name.as_str());
        if weights || name.ends_with("config.json") || tokenizer {
            hashes.insert(name.clone(), hasher.hash_file(&folder.join(&name))?.sha256);
        }
    }
    let templates = folder.join(TEMPLATES_FOLDER);
    if templates.is_dir() {
        for name in file_names(&templates)?.into_iter().filter(|name| name.ends_with(".jinja")) {
            hashes.insert(format!("{TEMPLATES_FOLDER}/{name}"), hasher.hash_file(&templates.join(&name))?.sha256);
        }
    }
    hasher.close();
    Ok(hashes)
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| io_error("reading folder", folder, e))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
