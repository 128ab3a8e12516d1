//! Arguments and steps of work that several commands share.

pub mod answer_file;
pub mod answer_printer;
pub mod beams;
pub mod cuda_graphs;
mod generation_config;
pub mod interrupt;
pub mod model;
pub mod model_files;
pub mod named_adapters;
pub mod sampling;
pub mod stdout;
pub mod suite;
pub mod training;
