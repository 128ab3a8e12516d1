//! Computes statistics of plain numbers. Knows nothing of models, rows or runs.
//!
//! `moments`: means, deviations, correlation. `proportion`: a share of rows with its interval. `ranks`: how well a
//! score separates two groups. `bootstrap`: intervals of any statistic by resampling.

pub mod bootstrap;
pub mod moments;
pub mod proportion;
pub mod ranks;
