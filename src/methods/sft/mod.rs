//! Supervised fine-tuning: next-token cross-entropy on the supervised tokens of each example.

pub mod spec;
pub use spec::SftSpec;
