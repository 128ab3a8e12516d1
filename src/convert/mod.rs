//! Model files in and out: GGUF read into a Hugging Face directory, adapters folded in, verified exports.
//!
//! Every directory is written whole or not at all.

pub mod architecture;
pub mod compatibility;
pub mod export;
pub mod gguf;
pub mod import;
mod measure;
pub mod merged;
pub mod pretokenizer;
pub mod quant;
mod rope_scaling;
mod scorer;
pub mod stops;
pub mod student;
pub mod template;
pub mod vocabulary;
