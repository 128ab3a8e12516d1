//! GPT-2. Directories have the weights of its linear layers as (in, out).

use super::USUAL;
use crate::gguf::layout::{BiasOf, Biases, Dim, Family, Layout, NormKind, RopeUse, TensorRule, norm, same};

pub static GPT2: Family = Family {
    arch: "gpt2",
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    norm: NormKind::Layer { bias: true },
    biases: Biases::ALWAYS,
    rope: RopeUse::Learnt,
    activations: &["gelu_new", "gelu_fast", "gelu_pytorch_tanh"],
    config_names: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
    ],
    before: &[
        same("token_embd", "transformer.wte", &[Dim::Vocab, Dim::Hidden], BiasOf::None),
        same("position_embd", "transformer.wpe", &[Dim::Positions, Dim::Hidden], BiasOf::None),
    ],
    layers: "transformer.h",
    layer: &[&[
        norm("attn_norm", "ln_1"),
        transposed("attn_qkv", "attn.c_attn", &[Dim::Hidden, Dim::Qkv], BiasOf::Qkv),
        transposed("attn_output", "attn.c_proj", &[Dim::Queries, Dim::Hidden], BiasOf::Output),
        norm("ffn_norm", "ln_2"),
        transposed("ffn_up", "mlp.c_fc", &[Dim::Hidden, Dim::Inner], BiasOf::Mlp),
        transposed("ffn_down", "mlp.c_proj", &[Dim::Inner, Dim::Hidden], BiasOf::Mlp),
    ]],
    after: &[norm("output_norm", "transformer.ln_f")],
    ..USUAL
};

const fn transposed(gguf: &'static str, hf: &'static str, shape: &'static [Dim], bias: BiasOf) -> TensorRule {
    TensorRule { layout: Layout::Transposed, ..same(gguf, hf, shape, bias) }
}
