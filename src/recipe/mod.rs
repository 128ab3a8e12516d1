//! Reads a recipe, checks it and resolves it into a [`Plan`]. The only floor that knows YAML.
//!
//! The steps: parse YAML into a tree with positions, apply `--set` overrides, check the tree against the schema, check
//! settings against each other, fill in defaults. All mistakes are collected and reported together. The structs in
//! `sections` and `optim` are the single source: the schema, the check, suggestions and the reference are made from
//! them.

mod check;
mod conflicts;
mod distillation;
mod mistakes;
pub mod neutral;
pub mod optim;
mod overrides;
mod plan;
mod reference;
mod repair;
mod sampling;
mod schema;
pub mod sections;
mod suggest;
mod synonyms;
mod tree;

pub use optim::*;
pub use plan::{Plan, load, parse};
pub use reference::{explain, markdown};
pub use schema::{RecipeKey, key, keys, schema};
pub use sections::*;
pub use suggest::{Suggestion, suggest_choice, suggest_key};
pub use synonyms::{SYNONYMS, Synonym, VALUE_SYNONYMS};
