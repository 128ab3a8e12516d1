//! Evaluation suites: their files, and the results of running them.

mod likelihoods;
mod lm_eval;
mod lm_eval_import;
mod models;
mod probes;
mod ready_suites;
mod running;
mod scorers;
mod suite_files;
mod suite_rows;
