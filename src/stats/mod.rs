//! Computes statistics of plain numbers. Knows nothing of models, rows or runs.
//!
//! `moments`: means, deviations, correlation. `proportion`: a share of rows with its interval. `ranks`: how well a
//! score separates two groups, correlation of ranks. `bootstrap`: intervals of any statistic by resampling. `classification`: scores
//! of predicted classes. `paired`: tests of two models on the same rows.

pub mod bootstrap;
pub mod classification;
pub mod moments;
pub mod paired;
pub mod proportion;
pub mod ranks;
