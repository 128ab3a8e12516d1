//! Reads and writes model directories: imports GGUF files, merges adapters, cuts students, and saves verified results.
//!
//! A directory appears completely written or not at all.
//!
//! gguf_import, gguf_export: convert GGUF files from and to directories. onnx_export: writes models for ONNX Runtime. hf_export:
//! writes them as directories in another number format. mlx: models and adapters of mlx-lm. folder: the files of a directory besides weights. verify: compares a
//! written directory with the model in memory. export: saves a model or adapter. merge, student: models made from
//! others.
//! runtime: what `ft export --for` writes for a program. module_factors: the factors of an adapter, for formats that have nothing else.
//! adapter: looks at adapters, and makes adapters of another rank or from two models.

pub mod adapter;
pub mod export;
pub mod folder;
pub mod gguf_export;
pub mod gguf_import;
pub mod hf_export;
pub mod merge;
pub mod mlx;
mod module_factors;
pub mod onnx_export;
pub mod quantised_base;
pub mod runtime;
pub mod student;
pub mod verify;
