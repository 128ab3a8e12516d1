//! Reads GGUF files, the model files of llama.cpp.
//!
//! quant: number formats. header, file: what a file contains. tensor_map: which tensors a model needs, under which name
//! and shape. rope_scaling, architecture: config.json. pretokenizer, vocabulary: the tokenizer's files. model_texts: all
//! these files as text.

pub mod architecture;
pub mod file;
mod header;
pub mod model_texts;
pub mod pretokenizer;
pub mod quant;
mod rope_scaling;
pub mod tensor_map;
pub mod vocabulary;
