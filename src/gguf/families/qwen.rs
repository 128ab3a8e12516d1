//! Qwen2 and Qwen3.

use super::{ATTENTION, MLP, NORMS, USUAL};
use crate::gguf::layout::{BiasOf, BiasUse, Biases, Dim, Family, TensorRule, norm_of};

pub static QWEN2: Family = Family {
    arch: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    biases: Biases { qkv: BiasUse::Always, ..Biases::NONE },
    ..USUAL
};

pub static QWEN3: Family = Family {
    arch: "qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    biases: Biases { qkv: BiasUse::Some, output: BiasUse::Some, mlp: BiasUse::Never },
    free_head_size: true,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, MLP],
    ..USUAL
};

/// Norms of each head of queries and keys, with one weight for all heads.
pub(super) const HEAD_NORMS: &[TensorRule] = &[
    norm_of("attn_q_norm", "self_attn.q_norm", &[Dim::Head], BiasOf::None),
    norm_of("attn_k_norm", "self_attn.k_norm", &[Dim::Head], BiasOf::None),
];
