//! Evaluation suites: their files, and the results of running them.

mod likelihoods;
mod lm_eval;
mod models;
mod probes;
mod running;
mod suite_files;
