//! The families that GGUF files can be read and written for, one table each; names and conventions are those of llama.cpp's
//! `convert_hf_to_gguf.py`. A new family is a new table and an entry of [`FAMILIES`].

mod alibi;
mod cohere;
mod experts;
mod fused;
mod gemma;
mod gpt2;
mod llama;
mod olmo;
mod qwen;

pub use super::layout::Family;
use super::layout::{
    BiasOf, Biases, Dim, ExpertUse, HeadUse, Layout, NormKind, RopeUse, TensorRule, WindowUse, norm, same,
};

/// Every family. Where several share the name of an architecture, those with experts come after the one without.
pub static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &experts::MIXTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &experts::QWEN2_MOE,
    &experts::QWEN3_MOE,
    &experts::OLMOE,
    &experts::GPT_OSS,
    &experts::DEEPSEEK_V2,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &fused::PHI3,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &llama::SMOLLM3,
    &llama::GRANITE,
    &cohere::COHERE,
    &cohere::COHERE2,
    &llama::STABLELM,
    &fused::GPT_NEOX,
    &fused::FALCON,
    &gpt2::GPT2,
    &alibi::BLOOM,
    &alibi::MPT,
];

/// Returns the names of all architectures in GGUF files, each once.
pub fn architectures() -> Vec<&'static str> {
    let mut seen = std::collections::HashSet::new();
    FAMILIES.iter().map(|family| family.arch).filter(|arch| seen.insert(*arch)).collect()
}

/// Returns the family that models of this `model_type` are written as; `None` if there is none.
pub fn of_model_type(model_type: &str) -> Option<&'static Family> {
    let is = |family: &&&Family| family.model_type == model_type || family.relatives.contains(&model_type);
    FAMILIES.iter().find(is).copied()
}

/// What most families have in common; each table says what is its own, names included.
const USUAL: Family = Family {
    arch: "",
    model_type: "",
    relatives: &[],
    class: "",
    norm: NormKind::Rms,
    biases: Biases::NONE,
    rope: RopeUse::Plain,
    partial_rotary: false,
    free_head_size: false,
    windows: WindowUse::None,
    experts: ExpertUse::None,
    latent: false,
    activations: &["silu"],
    head: HeadUse::Optional,
    config_names: &[],
    settings: &[],
    constants: &[],
    before: EMBEDDING,
    layers: LAYERS,
    layer: &[NORMS, ATTENTION, MLP],
    after: FINAL_NORM,
};

/// The embedding of most families.
const EMBEDDING: &[TensorRule] = &[same("token_embd", "model.embed_tokens", &[Dim::Vocab, Dim::Hidden], BiasOf::None)];
/// The final norm of most families.
const FINAL_NORM: &[TensorRule] = &[norm("output_norm", "model.norm")];
/// The prefix of layers in most families.
const LAYERS: &str = "model.layers";

/// Norms of the inputs of attention and MLP.
const NORMS: &[TensorRule] = &[norm("attn_norm", "input_layernorm"), norm("ffn_norm", "post_attention_layernorm")];

/// Attention with separate projections.
const ATTENTION: &[TensorRule] = &[
    same("attn_q", "self_attn.q_proj", &[Dim::Queries, Dim::Hidden], BiasOf::Qkv),
    same("attn_k", "self_attn.k_proj", &[Dim::Keys, Dim::Hidden], BiasOf::Qkv),
    same("attn_v", "self_attn.v_proj", &[Dim::Keys, Dim::Hidden], BiasOf::Qkv),
    same("attn_output", "self_attn.o_proj", &[Dim::Hidden, Dim::Queries], BiasOf::Output),
];

/// The same with rows of queries and keys in pairs, for architectures that rotate neighbours.
const TURNED_ATTENTION: &[TensorRule] = &[
    TensorRule { layout: Layout::TurnedQueries, ..ATTENTION[0] },
    TensorRule { layout: Layout::TurnedKeys, ..ATTENTION[1] },
    ATTENTION[2],
    ATTENTION[3],
];

/// The gated MLP.
const MLP: &[TensorRule] = &[
    same("ffn_gate", "mlp.gate_proj", &[Dim::Inner, Dim::Hidden], BiasOf::Mlp),
    same("ffn_up", "mlp.up_proj", &[Dim::Inner, Dim::Hidden], BiasOf::Mlp),
    same("ffn_down", "mlp.down_proj", &[Dim::Hidden, Dim::Inner], BiasOf::Mlp),
];

impl Family {
    /// Returns the number that a directory's weight of a norm differs by.
    pub fn norm_shift(&self) -> f32 {
        if self.norm == NormKind::CentredRms { 1.0 } else { 0.0 }
    }

    /// Returns the name that the family's config.json has for a key.
    pub fn config_key<'k>(&self, usual: &'k str) -> &'k str {
        self.config_names.iter().find(|(name, _)| *name == usual).map_or(usual, |(_, own)| own)
    }
}
