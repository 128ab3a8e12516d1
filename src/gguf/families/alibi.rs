//! Families without positions, whose scores fall with distance (ALiBi): BLOOM and MPT.

use super::fused::{SELF_ATTENTION, TWO_LAYERS};
use super::{NORMS, USUAL};
use crate::gguf::layout::{
    BiasOf, Biases, Dim, Family, FamilyKey, FamilyKeyType, HeadUse, NormKind, RopeUse, norm, same,
};

/// Its biases are in llama.cpp's code; a file says nothing about them.
pub static BLOOM: Family = Family {
    arch: "bloom",
    model_type: "bloom",
    class: "BloomForCausalLM",
    norm: NormKind::Layer { bias: true },
    biases: Biases::ALWAYS,
    rope: RopeUse::Alibi,
    activations: &[],
    head: HeadUse::Required,
    config_names: &[
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "seq_length"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    before: &[
        same("token_embd", "transformer.word_embeddings", &[Dim::Vocab, Dim::Hidden], BiasOf::None),
        norm("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ],
    layers: "transformer.h",
    layer: &[NORMS, SELF_ATTENTION, TWO_LAYERS],
    after: &[norm("output_norm", "transformer.ln_f")],
    ..USUAL
};

pub static MPT: Family = Family {
    arch: "mpt",
    model_type: "mpt",
    class: "MptForCausalLM",
    norm: NormKind::Layer { bias: false },
    rope: RopeUse::Alibi,
    activations: &[],
    config_names: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("max_position_embeddings", "max_seq_len"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    settings: &[
        FamilyKey {
            gguf: "attention.max_alibi_bias",
            config: "attn_config.alibi_bias_max",
            kind: FamilyKeyType::Fixed(8.0),
        },
        FamilyKey { gguf: "attention.clamp_kqv", config: "attn_config.clip_qkv", kind: FamilyKeyType::Optional },
    ],
    before: &[same("token_embd", "transformer.wte", &[Dim::Vocab, Dim::Hidden], BiasOf::None)],
    layers: "transformer.blocks",
    layer: &[&[
        norm("attn_norm", "norm_1"),
        same("attn_qkv", "attn.Wqkv", &[Dim::Qkv, Dim::Hidden], BiasOf::None),
        same("attn_output", "attn.out_proj", &[Dim::Hidden, Dim::Queries], BiasOf::None),
        norm("ffn_norm", "norm_2"),
        same("ffn_up", "ffn.up_proj", &[Dim::Inner, Dim::Hidden], BiasOf::None),
        same("ffn_down", "ffn.down_proj", &[Dim::Hidden, Dim::Inner], BiasOf::None),
    ]],
    after: &[norm("output_norm", "transformer.norm_f")],
    ..USUAL
};
