//! Tests of src/convert: model files in and out.

pub mod gguf_export;
mod gguf_import;
mod stop_tokens;
