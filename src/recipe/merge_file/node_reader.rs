//! Reads values that only files of merges have.

use super::models::MergeFormat;
use crate::model_files::is_gguf;
pub(super) use crate::recipe::node_reader::NodeReader;
use crate::recipe::tree::{Node, NodeKind};
use std::path::{Path, PathBuf};

impl NodeReader<'_> {
    /// Reads the folder of a model, which may be written as `{path: FOLDER}`. Notes a mistake for one that
    /// does not exist.
    pub fn model_folder(&mut self, key: &str, node: &Node) -> Option<PathBuf> {
        let node = match &node.kind {
            NodeKind::Map(_) => {
                self.check_keys(node, &["model", "path"], "a model");
                return match node.get("path").or(node.get("model")) {
                    Some(inner) => self.model_folder(key, inner),
                    None => self.expected(key, node, "a folder", "models/a"),
                };
            }
            _ => node,
        };
        let path = self.path(key, node, "models/a")?;
        if path.is_dir() || is_gguf(&path) {
            return Some(path);
        }
        let text = path.display().to_string();
        if let Some((model, adapter)) = text.split_once('+').filter(|(model, _)| Path::new(model).is_dir()) {
            let hint = format!("merge it first: ft merge {model} {adapter} --out DIR, and name DIR here");
            return self.wrong(node.at, format!("`{text}`: a model with an adapter is not read"), hint);
        }
        let hint = "ft reads local folders; a model on a hub has to be fetched first";
        self.wrong(node.at, format!("`{text}`: no such folder"), hint)
    }

    /// Reads the number format of merged weights; `None` if the key is missing.
    pub fn merge_format(&mut self, root: &Node, key: &str) -> Option<MergeFormat> {
        let node = root.get(key).filter(|node| !node.is_null())?;
        let names = ["float32", "bfloat16", "float16"];
        self.choice(key, node, &names, |name| match name.trim_start_matches("torch.") {
            "float32" => Some(MergeFormat::F32),
            "bfloat16" => Some(MergeFormat::Bf16),
            "float16" => Some(MergeFormat::F16),
            _ => None,
        })
    }
}
