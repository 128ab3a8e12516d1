//! The supported families, one file each. A new family is a new file and a new entry of [`FAMILIES`].

mod feed_forward;
mod gpt2;
mod llama;
mod mixtral;
mod olmoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

use super::family::Family;

/// Every supported family.
pub static FAMILIES: &[Family] = &[
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    mixtral::FAMILY,
    qwen2_moe::FAMILY,
    qwen3_moe::FAMILY,
    olmoe::FAMILY,
    gpt2::FAMILY,
];
