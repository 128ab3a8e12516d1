//! Verifies a directory that was just written: reads it into a fresh model and compares it with the model in memory.
//!
//! logit_distance: how far the outputs of two models are apart. thresholds: how far they may be. compatibility: which
//! other programs read the directory; expert_adapters: what PEFT cannot convert. kind: how each kind of directory is read back. report: the result, which is
//! written to export_report.json. check: the comparison.

pub(super) mod check;
pub mod compatibility;
mod expert_adapters;
pub mod kind;
pub(super) mod logit_distance;
pub mod report;
pub mod thresholds;

pub use check::{verify, verify_adapter};
