//! Copies the files that belong to a model besides weights and config.json.

use crate::error::Result;
use crate::fsutil;
use crate::model_files::ModelFiles;
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

/// Those of them that say on which terms a model may be used. An adapter takes its base's along.
pub(in crate::convert) const LICENCE_FILES: &[&str] = MODEL_FILES.split_at(1).1;

/// Copies the tokenizer's files and `more` of the model `from` byte for byte. Files that do not exist are skipped; those of
/// a GGUF file are made from it.
pub(in crate::convert) fn copy_companion_files(from: &Path, to: &Path, more: &[&str]) -> Result<()> {
    let files = ModelFiles::open(from)?;
    let more = more.iter().filter(|f| !TOKENIZER_FILES.contains(f));
    let names = TOKENIZER_FILES.iter().chain(more).map(|name| name.to_string());
    for name in names.chain(files.more_templates()?) {
        write_companion(&files, to, &name)?;
    }
    Ok(())
}

/// Copies one file of a model. A file that does not exist is skipped.
pub(in crate::convert) fn write_companion(files: &ModelFiles, to: &Path, name: &str) -> Result<()> {
    match files.read(name)? {
        Some(bytes) => fsutil::write_atomic(&to.join(name), |w| std::io::Write::write_all(w, &bytes)),
        None => Ok(()),
    }
}

/// Writes a text file.
pub(in crate::convert) fn write_text(path: &Path, text: &str) -> Result<()> {
    fsutil::write_atomic(path, |w| std::io::Write::write_all(w, text.as_bytes()))
}
