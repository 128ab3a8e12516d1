//! How recipes write a choice: a map of one key, `loss: { jsd: { beta: 0.5 } }`, and not a YAML tag.
//!
//! For sections that belong to a floor below `recipe`, where alone YAML is known: `#[serde(with = "crate::choice")]`.

pub use serde_yaml::with::singleton_map::{deserialize, serialize};
