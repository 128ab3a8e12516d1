//! All integration tests in one binary: each topic is a module, because every further binary would link libtorch again.
//! The folders are those of src/; README.md says which test is where.

mod adapters;
mod architecture;
mod cli;
mod convert;
mod data;
mod eval;
mod fake_cuda;
mod fuzz;
mod generate;
mod hostile_files;
mod label;
mod merging;
mod methods;
mod models;
mod native;
mod nn;
mod recipe;
mod rewards;
mod runs;
mod sandbox;
mod selftest;
mod setup;
mod support;
mod text_metrics;
mod train;
