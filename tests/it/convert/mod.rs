//! Tests of src/convert: model files in and out.

mod gguf_import;
mod stop_tokens;
