//! Computes statistics of plain numbers. Knows nothing of models, rows or runs.
//!
//! `moments`: means, deviations, correlation. `proportion`: a share of rows with its interval. `ranks`: how well a
//! score separates two groups, correlation of ranks. `change_point`: whether a series changed its level. `students_t`: intervals of
//! means of few numbers. `permutation`: tests of groups. `bootstrap`: intervals of any statistic by resampling. `classification`: scores
//! of predicted classes. `paired`: tests of two models on the same rows. `logistic`: logistic regression, win rates at equal length.
//! `pass_at_k`: the chance that one of several attempts succeeds.

pub mod bootstrap;
pub mod change_point;
pub mod classification;
pub mod logistic;
pub mod moments;
pub mod paired;
pub mod pass_at_k;
pub mod permutation;
pub mod proportion;
pub mod ranks;
pub mod students_t;
