//! Model files in and out: other formats read into Hugging Face directories, verified exports.
//!
//! Every directory is written whole or not at all.

pub mod compatibility;
pub mod export;
mod measure;
pub mod merged;

pub use crate::nn::safetensors;
