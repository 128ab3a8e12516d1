//! Computes statistics of ratings and comparisons. Pure functions over numbers: knows nothing of prompts, votes or
//! files.
//!
//! `agreement` has Krippendorff's alpha and the kappas, `dawid_skene` error rates of raters,
//! `paired_comparison` Bradley-Terry strengths and Elo ratings, `summary` median and entropy.

pub mod agreement;
pub mod dawid_skene;
pub mod paired_comparison;
pub mod summary;
