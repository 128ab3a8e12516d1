//! Reads a recipe, checks it and resolves it into a [`plan::Plan`]. The only module that knows YAML.
//!
//! The steps: parse YAML into a tree with positions, apply `--set` overrides, check the tree against the schema, check
//! settings against each other, fill in defaults. All mistakes are collected and reported together. The structs in
//! `sections` and `optim` are the single source: the schema, the check, suggestions and the reference are made from
//! them. `merge_file` reads the file of a merge and `suite_file` that of an evaluation suite, which are no recipes, with the same
//! tree (`node_reader`) and the same reports. `gate` reads conditions on an evaluation's results, `lm_eval_file` task files of
//! lm-evaluation-harness into plain values.

mod check;
mod conflicts;
pub mod gate;
pub mod lm_eval_file;
pub mod merge_file;
mod mistakes;
pub mod neutral;
mod node_reader;
pub mod optim;
mod overrides;
pub mod plan;
pub mod reference;
mod repair;
pub mod schema;
pub mod sections;
pub mod suggest;
pub mod suite_file;
pub mod synonyms;
mod tree;
mod written;
