//! OLMo 2 and OLMo 3, which share an architecture in GGUF files; OLMo 3 has windows.

use super::{ATTENTION, MLP, USUAL};
use crate::gguf::layout::{BiasOf, Dim, Family, HeadUse, RopeUse, TensorRule, WindowUse, norm, norm_of};

pub static OLMO2: Family = Family {
    arch: "olmo2",
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    head: HeadUse::Required,
    layer: LAYER,
    ..USUAL
};

pub static OLMO3: Family = Family {
    arch: "olmo2",
    model_type: "olmo3",
    class: "Olmo3ForCausalLM",
    rope: RopeUse::LocalUnscaled,
    windows: WindowUse::Period { period: 4, always: true },
    head: HeadUse::Required,
    layer: LAYER,
    ..USUAL
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
