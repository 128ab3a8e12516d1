//! The chat template that a result was taught with goes with it, where it is not its base's.

use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::fsutil::{self, io_error};
use std::fs;
use std::path::{Path, PathBuf};

const FILE: &str = "chat_template.jinja";

/// Makes `text` the one chat template of the model or adapter in `folder`: the file that every reader looks at first, and
/// none beside it that rows with tools would choose.
pub fn write(folder: &Path, text: &str) -> Result<()> {
    fsutil::write_atomic(&folder.join(FILE), |w| std::io::Write::write_all(w, text.as_bytes()))?;
    let others = folder.join("additional_chat_templates");
    match others.is_dir() {
        true => fs::remove_dir_all(&others).map_err(|e| io_error("removing", &others, e)),
        false => Ok(()),
    }
}

/// The template file of an adapter, where it holds another template than its base writes rows by.
pub fn own(adapter: &Path, base: &Path) -> Result<Option<PathBuf>> {
    let file = adapter.join(FILE);
    if !file.is_file() || !ChatTokenizer::in_directory(base) {
        return Ok(None);
    }
    let text = fsutil::read_to_string(&file)?;
    let of_base = ChatTokenizer::load(base, None)?;
    let same = of_base.template().is_some_and(|t| t.source().trim() == text.trim());
    Ok((!same).then_some(file))
}

/// Hands on the template that the `parts` folded into the model in `folder` were taught with. Where they were taught with
/// several, the first counts, as it does for the tokenizer's other files.
pub fn inherit<'a>(folder: &Path, base: &Path, parts: impl Iterator<Item = &'a Path>) -> Result<()> {
    for part in parts {
        if let Some(file) = own(part, base)? {
            return write(folder, &fsutil::read_to_string(&file)?);
        }
    }
    Ok(())
}
