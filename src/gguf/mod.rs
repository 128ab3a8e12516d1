//! Reads GGUF files, the model files of llama.cpp.
//!
//! quant: number formats. header, file: what a file contains. tensor_map: which tensors a model needs, under which name
//! and shape. rope_scaling, architecture: config.json. The vocabulary is read by `data::tokenizer_files::gguf`.

pub mod architecture;
pub mod file;
mod header;
pub mod quant;
mod rope_scaling;
pub mod tensor_map;
