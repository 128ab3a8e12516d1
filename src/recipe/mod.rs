//! Recipes: as written -> checked -> [`Plan`]. The only floor that knows YAML.
//!
//! tree (YAML with places) -> set (`--set`) -> check (against the schema) -> cross (settings against each other)
//! -> plan. The structs in `sections` and `optim` are the single source: the schema, the check, did-you-mean and the reference
//! are made from them. Every mistake is collected, then reported at once.

mod check;
mod cross;
mod distilled;
mod drawn;
mod mistakes;
pub mod optim;
mod plan;
mod reference;
mod repair;
mod schema;
pub mod sections;
mod set;
mod suggest;
mod synonyms;
mod tree;

pub use optim::*;
pub use plan::{Plan, load, parse};
pub use reference::{explain, markdown};
pub use schema::{Key, key, keys, schema};
pub use sections::*;
pub use suggest::{Suggestion, for_choice, for_key};
pub use synonyms::{SYNONYMS, Synonym, VALUES};
