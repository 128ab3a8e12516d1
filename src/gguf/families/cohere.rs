//! Command R (Cohere) and Command R7B (Cohere 2): one norm for attention and MLP. Pairs of neighbours are rotated in
//! directories too, so nothing is reordered.

use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, MLP};
use crate::gguf::layout::{
    BiasOf, Biases, Dim, ExpertUse, Family, HeadUse, NormKind, Presence, RopeUse, Setting, SettingKind, TensorRule,
    WindowUse, norm, norm_of, only,
};

pub static COHERE: Family = Family {
    arch: "command-r",
    model_type: "cohere",
    relatives: &[],
    class: "CohereForCausalLM",
    norm: NormKind::Layer { bias: false },
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Embedding,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    settings: &[LOGIT_SCALE],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[INPUT_NORM, ATTENTION, EACH_HEAD_NORMS, MLP],
    after: FINAL_NORM,
};

pub static COHERE2: Family = Family {
    arch: "cohere2",
    model_type: "cohere2",
    relatives: &[],
    class: "Cohere2ForCausalLM",
    norm: NormKind::Layer { bias: false },
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::Period { period: 4, always: true },
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Embedding,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    settings: &[LOGIT_SCALE],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[INPUT_NORM, ATTENTION, MLP],
    after: FINAL_NORM,
};

const LOGIT_SCALE: Setting = Setting { gguf: "logit_scale", config: "logit_scale", kind: SettingKind::Float };

const INPUT_NORM: &[TensorRule] = &[norm("attn_norm", "input_layernorm")];

/// Norms of each head of queries and keys, with a weight for each. llama.cpp reads them in models of 64 or more layers.
const EACH_HEAD_NORMS: &[TensorRule] = &[
    only(
        Presence::With("attn_q_norm"),
        norm_of("attn_q_norm", "self_attn.q_norm", &[Dim::Heads, Dim::Head], BiasOf::None),
    ),
    only(
        Presence::With("attn_q_norm"),
        norm_of("attn_k_norm", "self_attn.k_norm", &[Dim::KvHeads, Dim::Head], BiasOf::None),
    ),
];
