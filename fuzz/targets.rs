//! Feeds the bytes of the fuzzer to the parsers: one function per fuzz target. tests/fuzz.rs includes this file, too,
//! and replays the corpus through it.
//!
//! A parser may refuse any input, but only with a readable error that blames the input; it must not panic.

use ft::adapters::file;
use ft::convert::gguf::Gguf;
use ft::convert::{architecture, quant, vocabulary};
use ft::error::{Error, Result};
use ft::models::Config;
use ft::nn::weights;
use std::path::Path;

/// Returns the value, or `None` after a fair error: one that blames the input (exit code 1) and has a readable length.
/// Panics on any other error.
fn fair<T>(result: Result<T>) -> Option<T> {
    let unfair = |e: &Error| e.exit_code() != 1 || e.to_string().len() > 20_000 || e.message().is_empty();
    match result {
        Ok(value) => Some(value),
        Err(e) if unfair(&e) => panic!("unfair error: {e:?}"),
        Err(_) => None,
    }
}

/// Reads a GGUF file: header, every value, the vocabulary, the model it maps to, and every tensor's numbers.
pub fn gguf(data: &[u8]) {
    let Some(file) = fair(Gguf::from_bytes(Path::new("fuzz.gguf"), data.to_vec())) else { return };
    for key in file.keys() {
        fair(file.text(key));
        fair(file.unsigned(key));
        fair(file.bool(key));
        fair(file.float(key));
        fair(file.texts(key));
        fair(file.integers(key));
        fair(file.floats(key));
    }
    for tensor in file.tensors() {
        assert_eq!(quant::dequantise(tensor.kind, file.data(tensor)).len(), tensor.elements());
    }
    let Some(Some(arch)) = fair(file.text("general.architecture")) else { return };
    let Some(length) = fair(architecture::context_length(&file, arch)) else { return };
    if let Some(vocabulary) = fair(vocabulary::rebuild(&file, length, None)) {
        fair(architecture::map_model(&file, arch, &vocabulary));
    }
}

/// Reads the header of a safetensors file, or a model.safetensors.index.json if the first byte is `{`.
pub fn safetensors(data: &[u8]) {
    if data.first() == Some(&b'{') {
        if let Ok(text) = std::str::from_utf8(data) {
            fair(weights::read_index(Path::new("fuzz.index.json"), text));
        }
        return;
    }
    for (name, entry) in fair(weights::read_header(Path::new("fuzz.safetensors"), data)).unwrap_or_default() {
        let numbers = entry.shape.iter().try_fold(entry.kind.elt_size_in_bytes() as i64, |n, s| n.checked_mul(*s));
        assert_eq!(numbers, Some(entry.bytes as i64), "{name}");
        assert!(entry.offset + entry.bytes <= data.len(), "{name}");
    }
}

/// Reads a recipe; a valid one must read the same after it was written out.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(plan) = fair(ft::recipe::plan::parse("fuzz.yaml", text, &[])) {
        let again = plan.to_yaml().and_then(|text| ft::recipe::plan::parse("again.yaml", &text, &[]));
        let again = again.unwrap_or_else(|e| panic!("the plan of a valid recipe is not a valid recipe: {e}"));
        assert_eq!(again.recipe, plan.recipe);
    }
}

/// Reads the input as config.json and as adapter_config.json.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    fair(Config::parse(Path::new("config.json"), text));
    if let Some((spec, _)) = fair(file::parse_config(Path::new("adapter_config.json"), text)) {
        fair(ft::adapters::LoraPlan::of_file(&spec, Path::new("adapter_config.json")));
    }
}
