//! Defines the records of a labelling project. Plain data: independent of tensors, databases and pages.
//!
//! `settings` says what annotators are asked; `answer` has prompts, candidate answers and pairs of them; `annotator`
//! who compares; `vote` what they chose; `lease` which task somebody holds.

pub mod annotator;
pub mod answer;
pub mod lease;
pub mod settings;
pub mod vote;
