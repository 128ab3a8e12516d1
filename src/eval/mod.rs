//! Evaluates models on rows: loss and exact match of a language model, accuracy and calibration of a reward model.
//!
//! metrics: pure functions over answers. rows: the prompts and expected answers of a file. run: evaluates a language
//! model on these rows. score: scores rows with a reward model. merge_losses: losses of merges; sweep (a folder) searches the
//! weights of one by them, soup chooses its adapters.

pub mod merge_losses;
pub mod metrics;
pub mod rows;
pub mod run;
pub mod score;
pub mod soup;
pub mod sweep;
