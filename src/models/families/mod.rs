//! The supported families, one file each. A new family is a new file and a new entry of [`FAMILIES`].

mod bloom;
mod cohere;
mod deepseek_v2;
mod defaults;
mod falcon;
mod ft_decoder;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
pub mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod mpt;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod recurrent;
mod smollm3;
mod stablelm;

use super::family::Family;

/// Every supported family.
pub static FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma3n::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
    cohere::FAMILY,
    stablelm::FAMILY,
    gpt_neox::FAMILY,
    falcon::FAMILY,
    bloom::FAMILY,
    mpt::FAMILY,
    mixtral::FAMILY,
    qwen2_moe::FAMILY,
    qwen3_moe::FAMILY,
    olmoe::FAMILY,
    gpt_oss::FAMILY,
    deepseek_v2::FAMILY,
    gpt2::FAMILY,
    ft_decoder::FAMILY,
    recurrent::FAMILY,
];
