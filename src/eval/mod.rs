//! Evaluates models on rows: loss and exact match of a language model, accuracy and calibration of a reward model.
//!
//! metrics: pure functions over answers; answer_metrics: overlap of texts and scores of classes; match_test: whether two models
//! differ in exact match. rows: the prompts and expected answers of a file. run: evaluates a language model on these rows. score:
//! scores rows with a reward model. merge_losses: losses of merges; sweep (a folder) searches the weights of one by them, soup
//! chooses its adapters.
//!
//! suite (a folder): runs the tasks of a suite. results: what models answered to it. comparison (a folder): what the results say, tests and gates. baselines (a
//! folder): rules without a model, an n-gram model. report (a folder): page, Markdown and summary.
//! lm_eval (a folder): task files of lm-evaluation-harness as suites.
//! contamination: items that training rows contain. forgetting: what was lost of what the base could do. groups: what groups get.
//! canary_pattern, planted_canaries, exposure: canaries that were memorised. history (a folder): results of many evaluations over time.

pub mod answer_metrics;
pub mod baselines;
pub mod canary_pattern;
pub mod comparison;
pub mod contamination;
pub mod exposure;
pub mod forgetting;
pub mod groups;
pub mod history;
pub mod lm_eval;
pub mod match_test;
pub mod merge_losses;
pub mod metrics;
pub mod planted_canaries;
pub mod report;
pub mod results;
pub mod rows;
pub mod run;
pub mod score;
pub mod soup;
pub mod suite;
pub mod sweep;
