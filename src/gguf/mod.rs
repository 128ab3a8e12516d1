//! Reads and writes GGUF files, the model files of llama.cpp.
//!
//! quant, quantise, quantise_k: number formats; quantise_search: searches for scales; importance: which errors count more. header, file: what a file contains. layout, families: one table for each family, with the
//! names of its tensors and settings in GGUF files and in directories. shape: sizes and settings of one model, and the
//! tensors that follow from them. architecture, tensor_map, config_json: a file's model as config.json and tensors; metadata:
//! the reverse. rope_scaling: scaling of rotary positions. pretokenizer, vocabulary: the tokenizer's files; tokenizer_keys:
//! the reverse. model_texts: all files of a directory as text. writer: writes a file;
//! split: models in several files.

pub mod architecture;
pub mod config_json;
pub mod families;
pub mod file;
mod header;
mod importance;
pub mod layout;
pub mod metadata;
pub mod model_texts;
pub mod pretokenizer;
pub mod quant;
pub mod quantise;
mod quantise_k;
mod quantise_search;
pub mod rope_scaling;
pub mod shape;
pub mod split;
pub mod tensor_map;
pub mod tokenizer_keys;
pub mod vocabulary;
pub mod writer;
