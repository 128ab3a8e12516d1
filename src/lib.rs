//! `ft`: parameter-efficient fine-tuning of open language models in one binary, on libtorch.
//!
//! The floors, upper first; imports run downward only (tests/architecture.rs reads them):
//! cli -> recipe, train, eval, convert -> methods -> data, generate -> models -> adapters, nn -> native.

pub mod adapters;
pub mod data;
pub mod error;
pub mod fsutil;
pub mod libtorch;
pub mod machine;
pub mod methods;
pub mod native;
pub mod recipe;
pub mod report;
pub mod rng;
pub mod runtime;
