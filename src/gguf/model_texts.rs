//! The files of a Hugging Face model directory as text, made in memory from what a GGUF file contains.

use super::architecture;
use super::file::Gguf;
use super::quant::GgmlType;
use super::tensor_map::MappedTensor;
use super::vocabulary;
use crate::error::Result;
use crate::report;
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file with the model's shape.
pub const CONFIG: &str = "config.json";

/// A GGUF file, read as the files of a model directory. Each is made when it is first asked for.
pub struct ModelTexts {
    gguf: Gguf,
    vocabulary: OnceCell<BTreeMap<String, String>>,
}

impl ModelTexts {
    /// Opens a GGUF file and reads its header. Fails if it is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { gguf: Gguf::open(path)?, vocabulary: OnceCell::new() })
    }

    /// Returns the text of a file of the directory; `None` if it would have no such file. Fails if the GGUF file
    /// contains no whole model of a supported architecture, or no tokenizer that can be rebuilt.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match name {
            CONFIG => self.config().map(Some),
            _ => Ok(self.vocabulary()?.get(name).cloned()),
        }
    }

    /// Returns the names of all files, those in subfolders with the folder's name.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok([CONFIG].into_iter().chain(self.vocabulary()?.keys().map(String::as_str)).map(String::from).collect())
    }

    fn config(&self) -> Result<String> {
        let arch = architecture::of(&self.gguf)?;
        let mut model = architecture::map_model(&self.gguf, arch, &vocabulary::token_ids(&self.gguf)?)?;
        if let Some(dtype) = dtype_name(&model.tensors) {
            model.config.insert("torch_dtype".into(), json!(dtype));
        }
        Ok(config_text(&model.config))
    }

    fn vocabulary(&self) -> Result<&BTreeMap<String, String>> {
        if let Some(made) = self.vocabulary.get() {
            return Ok(made);
        }
        let context = architecture::context_length(&self.gguf, architecture::of(&self.gguf)?)?;
        let rebuilt = vocabulary::rebuild(&self.gguf, context, None)?;
        for warning in &rebuilt.warnings {
            report::warn_once(format!("{}: {warning}", self.gguf.path().display()));
        }
        Ok(self.vocabulary.get_or_init(|| rebuilt.texts().into_iter().collect()))
    }
}

/// Returns transformers' name of the dtype that most numbers of the model have; `None` if some are quantised.
fn dtype_name(tensors: &[MappedTensor]) -> Option<&'static str> {
    let mut numbers: BTreeMap<GgmlType, usize> = BTreeMap::new();
    for tensor in tensors {
        *numbers.entry(tensor.source.kind).or_default() += tensor.source.elements();
    }
    let plain = numbers.keys().all(|kind| kind.is_float());
    match numbers.into_iter().max_by_key(|(_, n)| *n).filter(|_| plain)?.0 {
        GgmlType::F32 => Some("float32"),
        GgmlType::F16 => Some("float16"),
        _ => Some("bfloat16"),
    }
}

/// Returns the text of config.json, with sorted keys, as transformers writes it.
pub fn config_text(config: &Map<String, Value>) -> String {
    let sorted: BTreeMap<&String, &Value> = config.iter().collect();
    json_text(&json!(sorted))
}

/// Returns a value as indented JSON with a line feed at the end.
pub(super) fn json_text(value: &Value) -> String {
    format!("{value:#}\n")
}
