//! Evaluation suites: their files, and the results of running them.

mod suite_files;
