//! Families with experts: the matrices of a layer's experts are one tensor of three dimensions, `ffn_*_exps`.

use super::olmo::WHOLE_NORMS;
use super::qwen::HEAD_NORMS;
use super::{ATTENTION, MLP, NORMS, TURNED_ATTENTION, USUAL};
use crate::gguf::layout::{
    BiasOf, BiasUse, Biases, Dim, ExpertUse, Family, HeadUse, Layout, Presence, TensorRule, WindowUse, bare, norm,
    norm_of, only, same, stacked, stacked_rows,
};

pub static MIXTRAL: Family = Family {
    arch: "llama",
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    free_head_size: true,
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: true, stated: false, later: false },
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
    experts: ExpertUse::Experts { own_width: true, shared: true, renormalised: false, stated: true, later: false },
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
    experts: ExpertUse::Experts { own_width: true, shared: false, renormalised: true, stated: true, later: false },
    head: HeadUse::Required,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, EXPERTS],
    ..USUAL
};

pub static OLMOE: Family = Family {
    arch: "olmoe",
    model_type: "olmoe",
    class: "OlmoeForCausalLM",
    experts: ExpertUse::Experts { own_width: false, shared: false, renormalised: false, stated: true, later: false },
    head: HeadUse::Required,
    layer: &[NORMS, ATTENTION, WHOLE_NORMS, EXPERTS],
    ..USUAL
};

/// gpt-oss, whose directories have gate and up in turn.
pub static GPT_OSS: Family = Family {
    arch: "gpt-oss",
    model_type: "gpt_oss",
    class: "GptOssForCausalLM",
    biases: Biases::ALWAYS,
    free_head_size: true,
    windows: WindowUse::Period { period: 2, always: true },
    experts: ExpertUse::Experts { own_width: true, shared: false, renormalised: true, stated: false, later: false },
    activations: &[],
    head: HeadUse::Required,
    config_names: &[("num_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")],
    layer: &[
        &[norm("attn_norm", "input_layernorm"), norm("post_attention_norm", "post_attention_layernorm")],
        ATTENTION,
        &[
            bare("attn_sinks", "self_attn.sinks", &[Dim::Heads]),
            same("ffn_gate_inp", "mlp.router", &[Dim::Experts, Dim::Hidden], BiasOf::Mlp),
            stacked_rows(0, "ffn_gate_exps", GATE_UP, &[Dim::TwiceExpertInner, Dim::Hidden], BiasOf::Mlp),
            stacked_rows(1, "ffn_up_exps", GATE_UP, &[Dim::TwiceExpertInner, Dim::Hidden], BiasOf::Mlp),
            TensorRule {
                bias: BiasOf::Mlp,
                ..stacked("ffn_down_exps", "mlp.experts.#.down_proj", &[Dim::Hidden, Dim::ExpertInner])
            },
        ],
    ],
    ..USUAL
};

/// Files of before 2025 have the matrix of keys and values whole.
pub static DEEPSEEK_V2: Family = Family {
    arch: "deepseek2",
    model_type: "deepseek_v2",
    class: "DeepseekV2ForCausalLM",
    latent: true,
    free_head_size: true,
    partial_rotary: true,
    experts: ExpertUse::Experts { own_width: true, shared: true, renormalised: false, stated: true, later: true },
    head: HeadUse::Required,
    config_names: &[("num_experts", "n_routed_experts")],
    layer: &[
        NORMS,
        &[
            only(Presence::Without("attn_q_a"), ATTENTION[0]),
            only(
                Presence::With("attn_q_a"),
                same("attn_q_a", "self_attn.q_a_proj", &[Dim::QueryRank, Dim::Hidden], BiasOf::None),
            ),
            only(
                Presence::With("attn_q_a"),
                norm_of("attn_q_a_norm", "self_attn.q_a_layernorm", &[Dim::QueryRank], BiasOf::None),
            ),
            only(
                Presence::With("attn_q_a"),
                same("attn_q_b", "self_attn.q_b_proj", &[Dim::Queries, Dim::QueryRank], BiasOf::None),
            ),
            same(
                "attn_kv_a_mqa",
                "self_attn.kv_a_proj_with_mqa",
                &[Dim::KeyValueRankAndRotated, Dim::Hidden],
                BiasOf::None,
            ),
            norm_of("attn_kv_a_norm", "self_attn.kv_a_layernorm", &[Dim::KeyValueRank], BiasOf::None),
            only(Presence::Without("attn_k_b"), KEYS_AND_VALUES),
            only(
                Presence::With("attn_k_b"),
                TensorRule { gguf: "attn_k_b", layout: Layout::HeadKeys, ..KEYS_AND_VALUES },
            ),
            only(
                Presence::With("attn_k_b"),
                TensorRule { gguf: "attn_v_b", layout: Layout::HeadValues, ..KEYS_AND_VALUES },
            ),
            same("attn_output", "self_attn.o_proj", &[Dim::Hidden, Dim::Values], BiasOf::None),
        ],
        &[
            only(Presence::Dense, MLP[0]),
            only(Presence::Dense, MLP[1]),
            only(Presence::Dense, MLP[2]),
            only(Presence::Sparse, EXPERTS[0]),
            only(Presence::Sparse, EXPERTS[1]),
            only(Presence::Sparse, EXPERTS[2]),
            only(Presence::Sparse, EXPERTS[3]),
            only(
                Presence::Sparse,
                same("ffn_gate_shexp", "mlp.shared_experts.gate_proj", &[Dim::SharedInner, Dim::Hidden], BiasOf::None),
            ),
            only(
                Presence::Sparse,
                same("ffn_up_shexp", "mlp.shared_experts.up_proj", &[Dim::SharedInner, Dim::Hidden], BiasOf::None),
            ),
            only(
                Presence::Sparse,
                same("ffn_down_shexp", "mlp.shared_experts.down_proj", &[Dim::Hidden, Dim::SharedInner], BiasOf::None),
            ),
        ],
    ],
    ..USUAL
};

/// What makes keys and values of the vector that all heads share.
const KEYS_AND_VALUES: TensorRule =
    same("attn_kv_b", "self_attn.kv_b_proj", &[Dim::PlainKeysAndValues, Dim::KeyValueRank], BiasOf::None);

/// Gate and up of an expert of gpt-oss.
const GATE_UP: &str = "mlp.experts.#.gate_up_proj";

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
