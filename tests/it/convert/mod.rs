//! Tests of src/convert: model files in and out.

mod compatibility;
mod export_memory;
mod export_refusals;
mod gguf_adapters;
pub mod gguf_export;
mod gguf_import;
mod gguf_split;
mod hf_export;
mod llama_cpp;
mod mlx;
mod mlx_models;
mod modelfile;
mod onnx_export;
mod runtimes;
mod stop_tokens;
