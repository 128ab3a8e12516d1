//! Command R (Cohere) and Command R7B (Cohere 2): one norm for attention and MLP. Pairs of neighbours are rotated in
//! directories too, so nothing is reordered.

use super::{ATTENTION, MLP, USUAL};
use crate::gguf::layout::{
    BiasOf, Dim, Family, FamilyKey, FamilyKeyType, HeadUse, NormKind, Presence, TensorRule, WindowUse, norm, norm_of,
    only,
};

pub static COHERE: Family = Family {
    arch: "command-r",
    model_type: "cohere",
    class: "CohereForCausalLM",
    norm: NormKind::Layer { bias: false },
    head: HeadUse::Embedding,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    settings: &[LOGIT_SCALE],
    layer: &[INPUT_NORM, ATTENTION, EACH_HEAD_NORMS, MLP],
    ..USUAL
};

pub static COHERE2: Family = Family {
    arch: "cohere2",
    model_type: "cohere2",
    class: "Cohere2ForCausalLM",
    norm: NormKind::Layer { bias: false },
    windows: WindowUse::Period { period: 4, always: true },
    head: HeadUse::Embedding,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    settings: &[LOGIT_SCALE],
    layer: &[INPUT_NORM, ATTENTION, MLP],
    ..USUAL
};

const LOGIT_SCALE: FamilyKey = FamilyKey { gguf: "logit_scale", config: "logit_scale", kind: FamilyKeyType::Float };

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
