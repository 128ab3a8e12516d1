//! Model files in other formats, in and out: GGUF read into a Hugging Face directory, safetensors written.
//!
//! Every directory is written whole or not at all. Nothing here knows libtorch: tensors cross as bytes.

pub mod architecture;
pub mod gguf;
pub mod import;
pub mod pretokenizer;
pub mod quant;
mod rope_scaling;
pub mod safetensors;
pub mod vocabulary;
//! Model files in and out: other formats read into Hugging Face directories, verified exports.
//!
//! Every directory is written whole or not at all.

pub mod compatibility;
pub mod export;
mod measure;
pub mod merged;

pub use crate::nn::safetensors;
