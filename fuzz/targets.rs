//! Feeds the bytes of the fuzzer to the parsers: one function per fuzz target. tests/it/fuzz.rs includes this file, too,
//! and replays the corpus through it.
//!
//! A parser may refuse any input, but only with a readable error that blames the input; it must not panic.

use ft::adapters::file;
use ft::data::chat::{ChatTemplate, ChatTokenizer};
use ft::data::rows;
use ft::data::rows::{Record, RowFormat};
use ft::data::tokenizer_files::gguf::vocabulary;
use ft::error::{Error, Result};
use ft::gguf::file::Gguf;
use ft::gguf::{architecture, quant};
use ft::label::project::import::file as label_file;
use ft::label::project::import::row::LabelImportOptions;
use ft::models::Config;
use ft::nn::weights;
use std::path::{Path, PathBuf};

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
        fair(architecture::map_model(&file, arch, &vocabulary.ids()));
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
        fair(spec.plan_of_file(Path::new("adapter_config.json"), &Default::default()));
    }
}

/// Compiles a chat template and renders a conversation with it. A template that loops is ended by its limits.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(template) = fair(ChatTemplate::compile("fuzz.jinja", text, &Default::default())) else { return };
    let row = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]}"#;
    let (_folder, path) = file("row.jsonl", row.as_bytes());
    for row in fair(rows::read_rows(&path, RowFormat::Auto, None)).unwrap_or_default().1 {
        if let Record::Messages(talk) = row.record {
            fair(template.render(&talk, 1, true));
            fair(template.render(&talk, 2, false));
        }
    }
}

/// Reads a file of rows as JSON lines, as one JSON list and as CSV: the format is detected, and every row is read.
pub fn rows(data: &[u8]) {
    for name in ["fuzz.jsonl", "fuzz.json", "fuzz.csv"] {
        let (_folder, path) = file(name, data);
        for row in fair(rows::read_rows(&path, RowFormat::Auto, None)).unwrap_or_default().1 {
            assert!(row.line > 0, "{name}: a row without a line");
            row.record.into_texts();
        }
    }
}

/// Reads a tokenizer.json; with one that can be read, text is encoded and decoded.
pub fn tokenizer(data: &[u8]) {
    let (folder, _) = file("tokenizer.json", data);
    let Some(tokenizer) = fair(ChatTokenizer::load(folder.path(), None)) else { return };
    if let Some(ids) = fair(tokenizer.encode("Some text: 12 \u{e9}\u{1f600}\n")) {
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        fair(tokenizer.decode(&ids, false));
    }
}

/// Reads a file of judged answers: Argilla's and Label Studio's exports, and rows.
pub fn labels(data: &[u8]) {
    for name in ["fuzz.jsonl", "fuzz.json"] {
        let (_folder, path) = file(name, data);
        for row in fair(label_file::read(&path, &LabelImportOptions::default())).unwrap_or_default() {
            assert!(!row.prompt.key.is_empty(), "a prompt without an id");
        }
    }
}

/// Writes a file into a temporary folder: these readers work on paths.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    (folder, path)
}
