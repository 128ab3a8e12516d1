//! Exports verdicts as training rows: pairs, ranked answers, single judged answers, or records for Argilla.
//!
//! `rows` chooses what is exported and splits it; each layout has a file.

mod argilla;
mod judged;
pub mod options;
mod preference;
mod ranked;
pub mod rows;
mod unpaired;
