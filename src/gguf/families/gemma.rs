//! Gemma, Gemma 2 and the language model of Gemma 3. GGUF files have their norms' weights, directories the differences from 1.

use super::qwen::HEAD_NORMS;
use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, MLP, NORMS};
use crate::gguf::layout::{
    Biases, ExpertUse, Family, HeadUse, NormKind, RopeUse, Setting, SettingKind, TensorRule, WindowUse, norm,
};

pub static GEMMA: Family = Family {
    arch: "gemma",
    model_type: "gemma",
    relatives: &[],
    class: "GemmaForCausalLM",
    norm: NormKind::CentredRms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: TANH_GELU,
    head: HeadUse::Embedding,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static GEMMA2: Family = Family {
    arch: "gemma2",
    model_type: "gemma2",
    relatives: &[],
    class: "Gemma2ForCausalLM",
    norm: NormKind::CentredRms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::Period { period: 2, always: true },
    experts: ExpertUse::None,
    activations: TANH_GELU,
    head: HeadUse::Embedding,
    config_names: &[("hidden_act", "hidden_activation")],
    settings: &[
        Setting { gguf: "attn_logit_softcapping", config: "attn_logit_softcapping", kind: SettingKind::Float },
        Setting { gguf: "final_logit_softcapping", config: "final_logit_softcapping", kind: SettingKind::Float },
    ],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[FOUR_NORMS, ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static GEMMA3: Family = Family {
    arch: "gemma3",
    model_type: "gemma3_text",
    relatives: &[],
    class: "Gemma3ForCausalLM",
    norm: NormKind::CentredRms,
    biases: Biases::NONE,
    rope: RopeUse::Local,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::Period { period: 6, always: true },
    experts: ExpertUse::None,
    activations: TANH_GELU,
    head: HeadUse::Optional,
    config_names: &[("hidden_act", "hidden_activation")],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[FOUR_NORMS, ATTENTION, HEAD_NORMS, MLP],
    after: FINAL_NORM,
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
