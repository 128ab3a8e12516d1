//! Saves the chat template that a model was trained with, if it is not its base's.

use crate::data::chat::ChatTokenizer;
use crate::error::Result;
use crate::fsutil::{self, io_error};
use std::fs;
use std::path::{Path, PathBuf};

const FILE: &str = "chat_template.jinja";

/// Makes `text` the only chat template of the model or adapter in `folder`: writes the file that every reader prefers,
/// and removes named templates, one of which might be chosen for rows with tools.
pub fn write_template(folder: &Path, text: &str) -> Result<()> {
    fsutil::write_atomic(&folder.join(FILE), |w| std::io::Write::write_all(w, text.as_bytes()))?;
    let others = folder.join("additional_chat_templates");
    match others.is_dir() {
        true => fs::remove_dir_all(&others).map_err(|e| io_error("removing", &others, e)),
        false => Ok(()),
    }
}

/// Returns the template file of an adapter if it differs from its base's template; `None` if it does not, or if the
/// adapter has no template.
pub fn adapter_template(adapter: &Path, base: &Path) -> Result<Option<PathBuf>> {
    let file = adapter.join(FILE);
    if !file.is_file() || !ChatTokenizer::in_directory(base) {
        return Ok(None);
    }
    let text = fsutil::read_to_string(&file)?;
    let of_base = ChatTokenizer::load(base, None)?;
    let same = of_base.template().is_some_and(|t| t.source().trim() == text.trim());
    Ok((!same).then_some(file))
}

/// Copies the template that the adapters `parts` were trained with to the merged model in `folder`. If they differ, the
/// first one is used, as for the tokenizer's other files.
pub fn inherit_template<'a>(folder: &Path, base: &Path, parts: impl Iterator<Item = &'a Path>) -> Result<()> {
    for part in parts {
        if let Some(file) = adapter_template(part, base)? {
            return write_template(folder, &fsutil::read_to_string(&file)?);
        }
    }
    Ok(())
}
