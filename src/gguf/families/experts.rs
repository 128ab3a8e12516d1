//! Families with experts: the matrices of a layer's experts are one tensor of three dimensions, `ffn_*_exps`.

use super::olmo::WHOLE_NORMS;
use super::qwen::HEAD_NORMS;
use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, NORMS, TURNED_ATTENTION};
use crate::gguf::layout::{
    BiasOf, BiasUse, Biases, Dim, ExpertUse, Family, HeadUse, Layout, NormKind, RopeUse, TensorRule, WindowUse, same,
    stacked,
};

pub static MIXTRAL: Family = Family {
    arch: "llama",
    model_type: "mixtral",
    relatives: &[],
    class: "MixtralForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: true, stated: false },
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[("num_experts", "num_local_experts")],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[
        NORMS,
        TURNED_ATTENTION,
        &[
            same("ffn_gate_inp", "block_sparse_moe.gate", &[Dim::Experts, Dim::Hidden], BiasOf::None),
            stacked("ffn_gate_exps", "block_sparse_moe.experts.#.w1", &[Dim::ExpertInner, Dim::Hidden]),
            stacked("ffn_up_exps", "block_sparse_moe.experts.#.w3", &[Dim::ExpertInner, Dim::Hidden]),
            stacked("ffn_down_exps", "block_sparse_moe.experts.#.w2", &[Dim::Hidden, Dim::ExpertInner]),
        ],
    ],
    after: FINAL_NORM,
};

pub static QWEN2_MOE: Family = Family {
    arch: "qwen2moe",
    model_type: "qwen2_moe",
    relatives: &[],
    class: "Qwen2MoeForCausalLM",
    norm: NormKind::Rms,
    biases: Biases { qkv: BiasUse::Some, ..Biases::NONE },
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::Experts { own_width: true, shared: true, renormalised: false, stated: true },
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[("attention_bias", "qkv_bias")],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, EXPERTS, SHARED_EXPERT],
    after: FINAL_NORM,
};

pub static QWEN3_MOE: Family = Family {
    arch: "qwen3moe",
    model_type: "qwen3_moe",
    relatives: &[],
    class: "Qwen3MoeForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::Experts { own_width: true, shared: false, renormalised: true, stated: true },
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, EXPERTS],
    after: FINAL_NORM,
};

pub static OLMOE: Family = Family {
    arch: "olmoe",
    model_type: "olmoe",
    relatives: &[],
    class: "OlmoeForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: false, stated: true },
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, WHOLE_NORMS, EXPERTS],
    after: FINAL_NORM,
};

/// A router and the experts that it chooses from.
const EXPERTS: &[TensorRule] = &[
    same("ffn_gate_inp", "mlp.gate", &[Dim::Experts, Dim::Hidden], BiasOf::None),
    stacked("ffn_gate_exps", "mlp.experts.#.gate_proj", &[Dim::ExpertInner, Dim::Hidden]),
    stacked("ffn_up_exps", "mlp.experts.#.up_proj", &[Dim::ExpertInner, Dim::Hidden]),
    stacked("ffn_down_exps", "mlp.experts.#.down_proj", &[Dim::Hidden, Dim::ExpertInner]),
];

/// The expert that computes every token, and its gate.
const SHARED_EXPERT: &[TensorRule] = &[
    TensorRule {
        layout: Layout::Flat,
        ..same("ffn_gate_inp_shexp", "mlp.shared_expert_gate", &[Dim::One, Dim::Hidden], BiasOf::None)
    },
    same("ffn_gate_shexp", "mlp.shared_expert.gate_proj", &[Dim::SharedInner, Dim::Hidden], BiasOf::None),
    same("ffn_up_shexp", "mlp.shared_expert.up_proj", &[Dim::SharedInner, Dim::Hidden], BiasOf::None),
    same("ffn_down_shexp", "mlp.shared_expert.down_proj", &[Dim::Hidden, Dim::SharedInner], BiasOf::None),
];
