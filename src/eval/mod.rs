//! Evaluation: how well a model answers rows it has not seen.
//!
//! metrics: pure functions over answers and counts. rows: what a file asks. run: a model on these rows.
//! score: a reward model on rows.

pub mod metrics;
pub mod rows;
pub mod run;
pub mod score;

pub use metrics::{Rate, matches, matches_ignoring_case};
pub use rows::{Asked, EvalRow};
pub use run::{Evaluation, evaluate, mean_loss};
