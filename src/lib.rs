//! `ft`: parameter-efficient fine-tuning of open language models in one binary, on libtorch.
//!
//! The modules form layers, called floors. A module imports only from itself and from lower floors; train also imports
//! from convert, and eval from label. tests/it/architecture.rs checks this. From top to bottom: cli; selftest; train, eval, convert, label;
//! runs; recipe; methods; rewards; data, generate; jinja, scrub; models; adapters; nn; merging; native, stats,
//! text_metrics, gguf, onnx, sandbox.
//!
//! Every floor may use characters, choice, error, report, fsutil, json, protobuf, rng and machine. Only cli and main use runtime
//! and libtorch, which load libtorch into the process.

#![warn(missing_docs)]

pub mod adapters;
pub mod characters;
pub mod choice;
pub mod convert;
pub mod data;
pub mod error;
pub mod eval;
pub mod fsutil;
pub mod generate;
pub mod gguf;
pub mod jinja;
pub mod json;
pub mod label;
pub mod libtorch;
pub mod machine;
pub mod merging;
pub mod methods;
pub mod model_files;
pub mod models;
pub mod native;
pub mod nn;
pub mod onnx;
pub mod protobuf;
pub mod recipe;
pub mod report;
pub mod rewards;
pub mod rng;
pub mod runs;
pub mod runtime;
pub mod sandbox;
pub mod scrub;
pub mod selftest;
pub mod stats;
pub mod text_metrics;
pub mod tokenizer_json;
pub mod train;
