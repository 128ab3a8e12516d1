//! Exports verdicts as training rows: pairs, ranked answers, single judged answers, or records for Argilla.
//!
//! `options` says what is exported, `judged` gathers what is known about a pair, `rows` chooses the pairs and splits
//! the rows; each layout has a file: `preference`, `ranked`, `unpaired`, `argilla`.

mod argilla;
mod judged;
pub mod options;
mod preference;
mod ranked;
pub mod rows;
mod unpaired;
