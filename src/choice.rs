//! Serialises an enum as recipes write it: a map with one key, `loss: { jsd: { beta: 0.5 } }`, not a YAML tag.
//!
//! Only `recipe` may know YAML. Sections that are defined below it use this module: `#[serde(with = "crate::choice")]`.

pub use serde_yaml::with::singleton_map::{deserialize, serialize};
