//! Models whose matrices are stored quantised: tests/fixtures/stored.

use super::files::copy_files;
use super::{fixture, tensors};
use ft::nn::weights;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// The formats that the fixtures have a model in.
pub const FORMATS: [&str; 5] = ["nf4", "fp4", "int8", "gptq", "awq"];

/// Returns the tensors of the model in a format: tiny-llama's, with the quantised ones for its matrices.
pub fn stored_tensors(format: &str) -> BTreeMap<String, Tensor> {
    let mut all = tensors("tiny-llama/model.safetensors");
    all.retain(|name, _| !name.ends_with("_proj.weight"));
    let file = ft::nn::Weights::open_file(&fixture(format!("stored/{format}/quantised.safetensors"))).unwrap();
    all.extend(file.all());
    all
}

/// Writes the model in a format, with changed tensors, and a tokenizer.
pub fn write_stored(format: &str, folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    std::fs::create_dir_all(folder).unwrap();
    copy_files(&fixture(format!("stored/{format}")), folder, |name| name == "config.json");
    copy_files(&fixture("tiny-tokenizer"), folder, |name| !name.ends_with(".py"));
    let mut tensors = stored_tensors(format);
    change(&mut tensors);
    let file = folder.join("model.safetensors");
    let _ = std::fs::remove_file(&file);
    weights::save(&file, tensors.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
}

/// Returns a folder with the model in a format.
pub fn stored_model(format: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_stored(format, folder.path(), |_| ());
    folder
}
