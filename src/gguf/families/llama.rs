//! Llama and families with its layers: SmolLM 3, Granite, StableLM.

use super::{ATTENTION, EMBEDDING, FINAL_NORM, LAYERS, MLP, NORMS, TURNED_ATTENTION};
use crate::gguf::layout::{
    BiasUse, Biases, ExpertUse, Family, HeadUse, NormKind, Presence, RopeUse, Setting, SettingKind, WindowUse, only,
};

/// Mistral's windows are not in the format; see `convert::gguf_export::shape`.
pub static LLAMA: Family = Family {
    arch: "llama",
    model_type: "llama",
    relatives: &["mistral", "ministral"],
    class: "LlamaForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::SOME,
    rope: RopeUse::Llama3,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static SMOLLM3: Family = Family {
    arch: "smollm3",
    model_type: "smollm3",
    relatives: &[],
    class: "SmolLM3ForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: true,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static GRANITE: Family = Family {
    arch: "granite",
    model_type: "granite",
    relatives: &[],
    class: "GraniteForCausalLM",
    norm: NormKind::Rms,
    biases: Biases::SOME,
    rope: RopeUse::Llama3,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[
        Setting { gguf: "attention.scale", config: "attention_multiplier", kind: SettingKind::Float },
        Setting { gguf: "embedding_scale", config: "embedding_multiplier", kind: SettingKind::Float },
        Setting { gguf: "residual_scale", config: "residual_multiplier", kind: SettingKind::Float },
        Setting { gguf: "logit_scale", config: "logits_scaling", kind: SettingKind::Float },
    ],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, TURNED_ATTENTION, MLP],
    after: FINAL_NORM,
};

pub static STABLELM: Family = Family {
    arch: "stablelm",
    model_type: "stablelm",
    relatives: &[],
    class: "StableLmForCausalLM",
    norm: NormKind::Layer { bias: true },
    biases: Biases { qkv: BiasUse::Some, ..Biases::NONE },
    rope: RopeUse::Plain,
    partial_rotary: true,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    activations: &["silu"],
    head: HeadUse::Required,
    config_names: &[("rms_norm_eps", "layer_norm_eps"), ("attention_bias", "use_qkv_bias")],
    settings: &[PARALLEL],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[
        // The second norm is missing where attention and MLP read the same vectors.
        &[NORMS[0], only(Presence::With("ffn_norm"), NORMS[1])],
        ATTENTION,
        MLP,
    ],
    after: FINAL_NORM,
};

/// Whether attention and MLP read the same vectors.
pub(super) const PARALLEL: Setting =
    Setting { gguf: "use_parallel_residual", config: "use_parallel_residual", kind: SettingKind::Flag };
