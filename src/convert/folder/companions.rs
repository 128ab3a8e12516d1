//! Copies the files that belong to a model besides weights and config.json.

use crate::error::Result;
use crate::fsutil;
use std::path::Path;

/// The files of a tokenizer, its chat template included.
pub(in crate::convert) const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Files that a whole model has besides the tokenizer's.
pub(in crate::convert) const MODEL_FILES: &[&str] =
    &["generation_config.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"];

/// Copies the tokenizer's files and `more` byte for byte. Files that do not exist are skipped.
pub(in crate::convert) fn copy_companion_files(from: &Path, to: &Path, more: &[&str]) -> Result<()> {
    let more = more.iter().filter(|f| !TOKENIZER_FILES.contains(f));
    for name in TOKENIZER_FILES.iter().chain(more) {
        let source = from.join(name);
        if source.is_file() {
            let bytes = fsutil::read(&source)?;
            fsutil::write_atomic(&to.join(name), |w| std::io::Write::write_all(w, &bytes))?;
        }
    }
    let templates = from.join("additional_chat_templates");
    if templates.is_dir() {
        for item in std::fs::read_dir(&templates).map_err(|e| fsutil::io_error("reading", &templates, e))? {
            let path = item.map_err(|e| fsutil::io_error("reading", &templates, e))?.path();
            let bytes = fsutil::read(&path)?;
            let target = to.join("additional_chat_templates").join(path.file_name().unwrap_or_default());
            fsutil::write_atomic(&target, |w| std::io::Write::write_all(w, &bytes))?;
        }
    }
    Ok(())
}

/// Writes a text file.
pub(in crate::convert) fn write_text(path: &Path, text: &str) -> Result<()> {
    fsutil::write_atomic(path, |w| std::io::Write::write_all(w, text.as_bytes()))
}
