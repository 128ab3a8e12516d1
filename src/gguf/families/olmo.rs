//! OLMo 2 and OLMo 3, which share an architecture in GGUF files; OLMo 3 has windows.

use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, MLP};
use crate::gguf::layout::{
    BiasOf, Biases, Dim, ExpertUse, Family, HeadUse, NormKind, RopeUse, TensorRule, WindowUse, norm, norm_of,
};

pub static OLMO2: Family = Family {
    arch: "olmo2",
    model_type: "olmo2",
    relatives: &[],
    class: "Olmo2ForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: LAYER,
    after: FINAL_NORM,
};

pub static OLMO3: Family = Family {
    arch: "olmo2",
    model_type: "olmo3",
    relatives: &[],
    class: "Olmo3ForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::LocalUnscaled,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::Period { period: 4, always: true },
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: LAYER,
    after: FINAL_NORM,
};

const LAYER: &[&[TensorRule]] = &[LATER_NORMS, ATTENTION, WHOLE_NORMS, MLP];

/// Norms of the results of attention and MLP.
const LATER_NORMS: &[TensorRule] =
    &[norm("post_attention_norm", "post_attention_layernorm"), norm("post_ffw_norm", "post_feedforward_layernorm")];

/// Norms of all queries and of all keys of a token.
pub(super) const WHOLE_NORMS: &[TensorRule] = &[
    norm_of("attn_q_norm", "self_attn.q_norm", &[Dim::Queries], BiasOf::None),
    norm_of("attn_k_norm", "self_attn.k_norm", &[Dim::Keys], BiasOf::None),
];
