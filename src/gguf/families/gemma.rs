//! Gemma, Gemma 2 and the language model of Gemma 3. GGUF files have their norms' weights, directories the differences from 1.

use super::qwen::HEAD_NORMS;
use super::{ATTENTION, MLP, USUAL};
use crate::gguf::layout::{Family, FamilyKey, FamilyKeyType, HeadUse, NormKind, RopeUse, TensorRule, WindowUse, norm};

pub static GEMMA: Family = Family {
    arch: "gemma",
    model_type: "gemma",
    class: "GemmaForCausalLM",
    norm: NormKind::CentredRms,
    free_head_size: true,
    activations: TANH_GELU,
    head: HeadUse::Embedding,
    ..USUAL
};

pub static GEMMA2: Family = Family {
    arch: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    norm: NormKind::CentredRms,
    free_head_size: true,
    windows: WindowUse::Period { period: 2, always: true },
    activations: TANH_GELU,
    head: HeadUse::Embedding,
    config_names: &[("hidden_act", "hidden_activation")],
    settings: &[
        FamilyKey { gguf: "attn_logit_softcapping", config: "attn_logit_softcapping", kind: FamilyKeyType::Float },
        FamilyKey { gguf: "final_logit_softcapping", config: "final_logit_softcapping", kind: FamilyKeyType::Float },
    ],
    layer: &[FOUR_NORMS, ATTENTION, MLP],
    ..USUAL
};

pub static GEMMA3: Family = Family {
    arch: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    norm: NormKind::CentredRms,
    rope: RopeUse::Local,
    free_head_size: true,
    windows: WindowUse::Period { period: 6, always: true },
    activations: TANH_GELU,
    config_names: &[("hidden_act", "hidden_activation")],
    layer: &[FOUR_NORMS, ATTENTION, HEAD_NORMS, MLP],
    ..USUAL
};

/// All three names mean the same function.
const TANH_GELU: &[&str] = &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"];

/// Norms before and after attention and MLP.
const FOUR_NORMS: &[TensorRule] = &[
    norm("attn_norm", "input_layernorm"),
    norm("post_attention_norm", "post_attention_layernorm"),
    norm("ffn_norm", "pre_feedforward_layernorm"),
    norm("post_ffw_norm", "post_feedforward_layernorm"),
];
