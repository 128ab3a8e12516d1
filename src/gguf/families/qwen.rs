//! Qwen2 and Qwen3.

use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, MLP, NORMS};
use crate::gguf::layout::{
    BiasOf, BiasUse, Biases, Dim, ExpertUse, Family, HeadUse, NormKind, RopeUse, TensorRule, WindowUse, norm_of,
};

pub static QWEN2: Family = Family {
    arch: "qwen2",
    model_type: "qwen2",
    relatives: &[],
    class: "Qwen2ForCausalLM",
    norm: NormKind::Rms,
    biases: Biases { qkv: BiasUse::Always, ..Biases::NONE },
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static QWEN3: Family = Family {
    arch: "qwen3",
    model_type: "qwen3",
    relatives: &[],
    class: "Qwen3ForCausalLM",
    norm: NormKind::Rms,
    biases: Biases { qkv: BiasUse::Some, output: BiasUse::Some, mlp: BiasUse::Never },
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, MLP],
    after: FINAL_NORM,
};

/// Norms of each head of queries and keys, with one weight for all heads.
pub(super) const HEAD_NORMS: &[TensorRule] = &[
    norm_of("attn_q_norm", "self_attn.q_norm", &[Dim::Head], BiasOf::None),
    norm_of("attn_k_norm", "self_attn.k_norm", &[Dim::Head], BiasOf::None),
];
