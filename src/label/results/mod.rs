//! Computes results from the votes of a project: `verdict` decides each pair, `ranking` compares the sources of
//! answers, `bias` measures the habits of annotators.

pub mod bias;
pub mod ranking;
pub mod verdict;
