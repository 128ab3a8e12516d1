//! Families with one matrix for queries, keys and values: Phi-3, GPT-NeoX, Falcon.

use super::llama::PARALLEL;
use super::{MLP, NORMS, USUAL};
use crate::gguf::layout::{
    BiasOf, Biases, Dim, Family, HeadUse, Layout, NormKind, Presence, RopeUse, TensorRule, WindowUse, norm, only, same,
};

pub static PHI3: Family = Family {
    arch: "phi3",
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    rope: RopeUse::Long,
    partial_rotary: true,
    windows: WindowUse::Ignored,
    layer: &[
        NORMS,
        &[
            same("attn_qkv", "self_attn.qkv_proj", &[Dim::Qkv, Dim::Hidden], BiasOf::None),
            same("attn_output", "self_attn.o_proj", &[Dim::Hidden, Dim::Queries], BiasOf::None),
            same("ffn_up", "mlp.gate_up_proj", &[Dim::TwiceInner, Dim::Hidden], BiasOf::None),
            MLP[2],
        ],
    ],
    ..USUAL
};

pub static GPT_NEOX: Family = Family {
    arch: "gptneox",
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    norm: NormKind::Layer { bias: true },
    biases: Biases::ALWAYS,
    partial_rotary: true,
    activations: GELU,
    head: HeadUse::Required,
    config_names: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("partial_rotary_factor", "rotary_pct"),
        ("rope_theta", "rotary_emb_base"),
    ],
    settings: &[PARALLEL],
    before: &[same("token_embd", "gpt_neox.embed_in", &[Dim::Vocab, Dim::Hidden], BiasOf::None)],
    layers: "gpt_neox.layers",
    layer: &[
        NORMS,
        &[
            TensorRule {
                layout: Layout::Ungrouped,
                ..same("attn_qkv", "attention.query_key_value", &[Dim::Qkv, Dim::Hidden], BiasOf::Qkv)
            },
            same("attn_output", "attention.dense", &[Dim::Hidden, Dim::Queries], BiasOf::Output),
        ],
        TWO_LAYERS,
    ],
    after: &[norm("output_norm", "gpt_neox.final_layer_norm")],
    ..USUAL
};

pub static FALCON: Family = Family {
    arch: "falcon",
    model_type: "falcon",
    class: "FalconForCausalLM",
    norm: NormKind::Layer { bias: true },
    activations: GELU,
    config_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation"),
        ("intermediate_size", "ffn_hidden_size"),
        ("attention_bias", "bias"),
        ("num_key_value_heads", "num_kv_heads"),
    ],
    constants: &[("tensor_data_layout", "jploski")],
    before: &[same("token_embd", "transformer.word_embeddings", &[Dim::Vocab, Dim::Hidden], BiasOf::None)],
    layers: "transformer.h",
    layer: &[
        // A layer has the first of these, or the two after it.
        &[
            only(Presence::Without("attn_norm_2"), norm("attn_norm", "input_layernorm")),
            only(Presence::With("attn_norm_2"), norm("attn_norm", "ln_mlp")),
            only(Presence::With("attn_norm_2"), norm("attn_norm_2", "ln_attn")),
        ],
        SELF_ATTENTION,
        TWO_LAYERS,
    ],
    after: &[norm("output_norm", "transformer.ln_f")],
    ..USUAL
};

/// llama.cpp computes the tanh form for both.
const GELU: &[&str] = &["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"];

/// Attention of Falcon and BLOOM.
pub(super) const SELF_ATTENTION: &[TensorRule] = &[
    TensorRule {
        layout: Layout::Ungrouped,
        ..same("attn_qkv", "self_attention.query_key_value", &[Dim::Qkv, Dim::Hidden], BiasOf::Qkv)
    },
    same("attn_output", "self_attention.dense", &[Dim::Hidden, Dim::Queries], BiasOf::Output),
];

/// An MLP without a gate.
pub(super) const TWO_LAYERS: &[TensorRule] = &[
    same("ffn_up", "mlp.dense_h_to_4h", &[Dim::Inner, Dim::Hidden], BiasOf::Mlp),
    same("ffn_down", "mlp.dense_4h_to_h", &[Dim::Hidden, Dim::Inner], BiasOf::Mlp),
];
