//! Model files in other formats, in and out: GGUF read into a Hugging Face directory, safetensors written.
//!
//! Every directory is written whole or not at all. Nothing here knows libtorch: tensors cross as bytes.

pub mod safetensors;
