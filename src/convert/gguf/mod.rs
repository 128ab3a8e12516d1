//! Converts GGUF files to Hugging Face model directories (`ft import`).
//!
//! quant: number formats. header, file: what a file contains. tensor_map: which tensors a model needs, under which name
//! and shape. rope_scaling, architecture: config.json. pretokenizer, vocabulary: the tokenizer's files. import: the
//! whole conversion.

pub mod architecture;
pub mod file;
mod header;
pub mod import;
pub mod pretokenizer;
pub mod quant;
mod rope_scaling;
pub mod tensor_map;
pub mod vocabulary;
