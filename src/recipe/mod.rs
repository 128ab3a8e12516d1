//! Recipes: as written -> checked -> `Plan`. The only floor that knows YAML.

pub mod sections;

pub use sections::*;
