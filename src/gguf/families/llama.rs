//! Llama and families with its layers: SmolLM 3, Granite, StableLM.

use super::{ATTENTION, MLP, NORMS, TURNED_ATTENTION, USUAL};
use crate::gguf::layout::{
    BiasUse, Biases, Family, FamilyKey, FamilyKeyType, HeadUse, NormKind, Presence, RopeUse, only,
};

/// Mistral's windows are not in the format; see `convert::gguf_export::shape`.
pub static LLAMA: Family = Family {
    arch: "llama",
    model_type: "llama",
    relatives: &["mistral", "ministral"],
    class: "LlamaForCausalLM",
    biases: Biases::SOME,
    rope: RopeUse::Llama3,
    free_head_size: true,
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    ..USUAL
};

pub static SMOLLM3: Family = Family {
    arch: "smollm3",
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    free_head_size: true,
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    ..USUAL
};

pub static GRANITE: Family = Family {
    arch: "granite",
    model_type: "granite",
    class: "GraniteForCausalLM",
    biases: Biases::SOME,
    rope: RopeUse::Llama3,
    settings: &[
        FamilyKey { gguf: "attention.scale", config: "attention_multiplier", kind: FamilyKeyType::Float },
        FamilyKey { gguf: "embedding_scale", config: "embedding_multiplier", kind: FamilyKeyType::Float },
        FamilyKey { gguf: "residual_scale", config: "residual_multiplier", kind: FamilyKeyType::Float },
        FamilyKey { gguf: "logit_scale", config: "logits_scaling", kind: FamilyKeyType::Float },
    ],
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    ..USUAL
};

pub static STABLELM: Family = Family {
    arch: "stablelm",
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    norm: NormKind::Layer { bias: true },
    biases: Biases { qkv: BiasUse::Some, ..Biases::NONE },
    partial_rotary: true,
    head: HeadUse::Required,
    config_names: &[("rms_norm_eps", "layer_norm_eps"), ("attention_bias", "use_qkv_bias")],
    settings: &[PARALLEL],
    layer: &[
        // The second norm is missing where attention and MLP read the same vectors.
        &[NORMS[0], only(Presence::With("ffn_norm"), NORMS[1])],
        ATTENTION,
        MLP,
    ],
    ..USUAL
};

/// Whether attention and MLP read the same vectors.
pub(super) const PARALLEL: FamilyKey =
    FamilyKey { gguf: "use_parallel_residual", config: "use_parallel_residual", kind: FamilyKeyType::Flag };
