//! Families with experts: the matrices of a layer's experts are one tensor of three dimensions, `ffn_*_exps`.

use super::olmo::WHOLE_NORMS;
use super::qwen::HEAD_NORMS;
use super::{ATTENTION, NORMS, TURNED_ATTENTION, USUAL};
use crate::gguf::layout::{
    BiasOf, BiasUse, Biases, Dim, ExpertUse, Family, HeadUse, Layout, TensorRule, same, stacked,
};

pub static MIXTRAL: Family = Family {
    arch: "llama",
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    free_head_size: true,
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: true, stated: false },
    config_names: &[("num_experts", "num_local_experts")],
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
    ..USUAL
};

pub static QWEN2_MOE: Family = Family {
    arch: "qwen2moe",
    model_type: "qwen2_moe",
    class: "Qwen2MoeForCausalLM",
    biases: Biases { qkv: BiasUse::Some, ..Biases::NONE },
    experts: ExpertUse::Experts { own_width: true, shared: true, renormalised: false, stated: true },
    head: HeadUse::Required,
    config_names: &[("attention_bias", "qkv_bias")],
    layer: &[NORMS, ATTENTION, EXPERTS, SHARED_EXPERT],
    ..USUAL
};

pub static QWEN3_MOE: Family = Family {
    arch: "qwen3moe",
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    free_head_size: true,
    experts: ExpertUse::Experts { own_width: true, shared: false, renormalised: true, stated: true },
    head: HeadUse::Required,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, EXPERTS],
    ..USUAL
};

pub static OLMOE: Family = Family {
    arch: "olmoe",
    model_type: "olmoe",
    class: "OlmoeForCausalLM",
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: false, stated: true },
    head: HeadUse::Required,
    layer: &[NORMS, ATTENTION, WHOLE_NORMS, EXPERTS],
    ..USUAL
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
