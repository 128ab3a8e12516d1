//! The supported families, one file each. A new family is a new file and a new entry of [`FAMILIES`].

mod gpt2;
mod llama;
mod qwen2;
mod qwen3;

use super::family::Family;

/// Every supported family.
pub static FAMILIES: &[Family] = &[llama::FAMILY, qwen2::FAMILY, qwen3::FAMILY, gpt2::FAMILY];
