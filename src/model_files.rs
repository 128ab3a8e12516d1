//! Reads the files of a model other than its weights, wherever the model is: in a Hugging Face directory, or inside one
//! GGUF file, from which they are made in memory.
//!
//! Everything that reads such a file of a base model reads it here. Weights are opened by `models::weights`.

use crate::error::Result;
use crate::fsutil::{self, io_error};
use crate::gguf::model_texts::ModelTexts;
use crate::gguf::split;
use std::path::{Path, PathBuf};

/// Name of the file with a model's shape.
pub const CONFIG: &str = crate::gguf::model_texts::CONFIG;
/// Subfolder with further chat templates of a model.
pub const TEMPLATES_FOLDER: &str = "additional_chat_templates";

/// Returns true if the model at this path is a file, which must then be a GGUF file.
pub fn is_gguf(model: &Path) -> bool {
    model.is_file()
}

/// Returns all files of a model in a GGUF file: the file, or the parts of which it is the first.
pub fn gguf_files(model: &Path) -> Vec<PathBuf> {
    split::files(model)
}

/// Returns true if there is a model at this path: a directory with a config.json, or a file.
pub fn is_model(model: &Path) -> bool {
    is_gguf(model) || model.join(CONFIG).is_file()
}

/// Returns a GGUF file that lies in a folder, for a hint: the model may be named by its folder.
pub fn gguf_within(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "gguf")).min()
}

/// The files of one model, by name.
pub struct ModelFiles {
    path: PathBuf,
    gguf: Option<ModelTexts>,
}

impl ModelFiles {
    /// Opens the model at `path`, a directory or a GGUF file. Fails for a file that is not a GGUF file or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = if is_gguf(path) { Some(ModelTexts::open(path)?) } else { None };
        Ok(Self { path: path.into(), gguf })
    }

    /// Returns the path of the model.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory with the files; `None` for a GGUF file.
    pub fn folder(&self) -> Option<&Path> {
        self.gguf.is_none().then_some(self.path.as_path())
    }

    /// Says where a file is, for messages.
    pub fn place(&self, name: &str) -> PathBuf {
        match &self.gguf {
            None => self.path.join(name),
            Some(_) => format!("{} ({name})", self.path.display()).into(),
        }
    }

    /// Returns the contents of a file; `None` if the model has no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(gguf) = &self.gguf {
            return Ok(gguf.text(name)?.map(String::into_bytes));
        }
        let file = self.path.join(name);
        if file.is_file() { fsutil::read(&file).map(Some) } else { Ok(None) }
    }

    /// Returns the text of a file; `None` if the model has no such file. Fails if it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        if let Some(gguf) = &self.gguf {
            return gguf.text(name);
        }
        let file = self.path.join(name);
        if file.is_file() { fsutil::read_to_string(&file).map(Some) } else { Ok(None) }
    }

    /// Returns the value of a JSON file; the default value if the model has no such file.
    pub fn json_or_default<T: serde::de::DeserializeOwned + Default>(&self, name: &str) -> Result<T> {
        match self.text(name)? {
            Some(text) => fsutil::parse_json(&self.place(name), &text),
            None => Ok(T::default()),
        }
    }

    /// Returns the names of the model's further chat templates, with their folder's name, in alphabetical order.
    pub fn more_templates(&self) -> Result<Vec<String>> {
        let within = |name: &String| name.starts_with(TEMPLATES_FOLDER) && name.ends_with(".jinja");
        let mut names = match &self.gguf {
            Some(gguf) => gguf.names()?,
            None => {
                let folder = self.path.join(TEMPLATES_FOLDER);
                if !folder.is_dir() {
                    return Ok(Vec::new());
                }
                let entries = std::fs::read_dir(&folder).map_err(|e| io_error("reading", &folder, e))?;
                let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
                names.map(|name| format!("{TEMPLATES_FOLDER}/{name}")).collect()
            }
        };
        names.retain(within);
        names.sort();
        Ok(names)
    }
}
