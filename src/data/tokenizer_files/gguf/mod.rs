//! The tokenizer of a GGUF file, as the files of a Hugging Face directory.

pub mod pretokenizer;
pub mod vocabulary;
