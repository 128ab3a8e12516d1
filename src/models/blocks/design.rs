//! What the layers of families differ in, as values.

use crate::error::Result;
use crate::models::family::Config;
use crate::nn::{Alibi, GATED_MLP_NAMES, GatedMlpForm, LayerInput, LogitChange, RelativeBuckets, ops};
use tch::Tensor;

/// The layers of a family: names, norms, attention, MLP, and factors.
pub struct Design {
    /// Names of modules outside the layers.
    pub names: Names,
    /// The kind of norms.
    pub norm: NormKind,
    /// Which norms a layer has.
    pub wiring: Wiring,
    /// Attention.
    pub attention: AttentionDesign,
    /// The MLP.
    pub feed_forward: FeedForwardDesign,
    /// For each layer, about how many of the MLP's gates are 0, as a share: those whose inputs are below this quantile of a
    /// normal distribution with their mean and deviation.
    pub sparsity: Vec<f64>,
    /// The experts, in models with experts.
    pub experts: ExpertDesign,
    /// Factor on the vectors of tokens, rounded to the dtype that they are computed in.
    pub embedding_scale: f64,
    /// Sinusoidal vectors of positions are added to those of tokens.
    pub sinusoidal_positions: bool,
    /// Factor on what attention and MLP add to the residual stream.
    pub residual_scale: f64,
    /// What the output head does to its products.
    pub logits: LogitChange,
}

/// Names of modules outside the layers.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What embedding, layers and final norm are in.
    pub trunk: &'static str,
    /// The table of tokens.
    pub embedding: &'static str,
    /// Norm of the embedded tokens, before the first layer.
    pub embedding_norm: Option<&'static str>,
    /// The list of layers.
    pub layers: &'static str,
    /// Norm after the last layer.
    pub final_norm: &'static str,
}

/// The kind of a model's norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Root mean square, with a weight that is stored as the scale's difference from 1.
    CentredRms,
    /// Layer norm, with a shift if `bias` is true.
    Layer {
        /// It has a shift.
        bias: bool,
    },
}

/// Which norms a layer has, by name, and what they read.
#[derive(Debug, Clone, Copy)]
pub struct Wiring {
    /// Norm of attention's input.
    pub before_attention: Option<&'static str>,
    /// Norm of attention's result, before it is added.
    pub after_attention: Option<&'static str>,
    /// Norm of the MLP's input. `None` in a parallel layer: the MLP reads what attention reads.
    pub before_mlp: Option<&'static str>,
    /// Norm of the MLP's result, before it is added.
    pub after_mlp: Option<&'static str>,
    /// The MLP reads the layer's input instead of attention's result (Wang and Komatsuzaki 2021, GPT-J).
    pub parallel: bool,
}

/// How a layer's attention is computed.
pub struct AttentionDesign {
    /// The module's name.
    pub module: &'static str,
    /// The layers that make queries, keys and values.
    pub projections: Projections,
    /// They have a bias.
    pub qkv_bias: bool,
    /// Name of the projection of the result.
    pub output: &'static str,
    /// It has a bias.
    pub output_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Values are divided by their root mean square, head by head.
    pub value_norm: bool,
    /// Rotary embedding turns the pairs (2i, 2i + 1) instead of (i, i + E/2).
    pub interleaved: bool,
    /// For each layer, whether it has rotary embedding.
    pub rotates: Vec<bool>,
    /// Factor on the products of queries and keys.
    pub scale: f64,
    /// Bound of the scores.
    pub softcap: Option<f64>,
    /// Bias of the scores by distance.
    pub alibi: Option<Alibi>,
    /// Trained biases of the scores by distance, which all layers share.
    pub relative: Option<RelativeBuckets>,
    /// Queries, keys and values are limited to this magnitude.
    pub clip_qkv: Option<f64>,
    /// Each head has a learned logit ([`Attention::sinks`](crate::nn::Attention::sinks)).
    pub sinks: bool,
}

/// The linear layers that make queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Projections {
    /// `q_proj`, `k_proj` and `v_proj`.
    Separate,
    /// One of this name: all queries, then all keys, then all values.
    ByKind(&'static str),
    /// One of this name: for each key head its queries, its key and its value.
    ByGroup(&'static str),
    /// Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).
    Latent(LatentSizes),
}

/// The sizes of multi-head latent attention, in which keys and values are made of one vector of a few numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentSizes {
    /// The width of the vector that queries are made of; `None`: of the layer's input itself.
    pub query_rank: Option<i64>,
    /// The width of the vector that keys and values are made of.
    pub key_value_rank: i64,
    /// The numbers of a head's query and key that are not rotated.
    pub plain: i64,
    /// Those that are; all heads share those of the key.
    pub rotated: i64,
    /// The numbers of a head's value, at most those of its key.
    pub value: i64,
}

/// Norms of queries and keys before they are rotated, of the model's kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QkNorm {
    /// There are none.
    None,
    /// Of each head, with one scale for all heads.
    PerHead,
    /// Of each head, with a scale of its own.
    EachHead,
    /// Of all heads together.
    Whole,
}

/// The experts of a layer, in models with experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertDesign {
    /// The module within the layer.
    pub module: &'static str,
    /// The router's name within that module.
    pub router: &'static str,
    /// The router and the layers of experts have a bias.
    pub bias: bool,
    /// The layers within an expert.
    pub mlp: GatedMlpForm,
    /// The expert that computes every token.
    pub shared: SharedExpertNames,
}

/// Where checkpoints have the expert that computes every token, in models with one.
#[derive(Debug, Clone, Copy)]
pub struct SharedExpertNames {
    /// Its name within the module of experts.
    pub module: &'static str,
    /// The name of the layer whose sigmoid is a factor on its result, if there is one.
    pub gate: Option<&'static str>,
}

/// The linear layers of the MLP, and what lies between them.
#[derive(Debug, Clone, Copy)]
pub struct FeedForwardDesign {
    /// The module's name.
    pub module: &'static str,
    /// The linear layers.
    pub layers: FeedForwardLayers,
    /// They have a bias.
    pub bias: bool,
    /// What lies between them.
    pub activation: Activation,
}

/// The linear layers of the MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FeedForwardLayers {
    /// `gate_proj`, `up_proj`, `down_proj`.
    Gated,
    /// `gate_up_proj`, whose first half of outputs is the gate, and `down_proj`.
    FusedGate,
    /// Two layers of these names.
    Plain([&'static str; 2]),
}

/// The activation function of the MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

impl Activation {
    /// Computes the activation of `gate` times `up`, elementwise, as a layer's input that the backward recomputes.
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> LayerInput {
        match self {
            Self::Silu => ops::swiglu(gate, up),
            Self::GeluTanh => ops::geglu(gate, up, false),
            Self::Gelu => ops::geglu(gate, up, true),
        }
    }

    /// Returns the activation that transformers calls by this name. Fails for one that is not supported.
    pub fn named(c: &Config, name: &str) -> Result<Self> {
        Ok(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            // All three names mean 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Self::GeluTanh,
            _ => {
                return Err(c
                    .refuse(format!("hidden_act `{name}` is not supported"))
                    .hint("supported: silu, gelu, gelu_pytorch_tanh"));
            }
        })
    }
}

impl Design {
    /// Returns true if the results of attention and MLP are added to the residual stream as they are, by a norm of the sum, which on
    /// CUDA may put it in their place ([`ops::add_rms_norm`]).
    pub fn sums_results(&self) -> bool {
        let Wiring { before_attention, after_attention, before_mlp, after_mlp, parallel } = self.wiring;
        let normed = before_attention.is_some() && before_mlp.is_some() && self.norm == NormKind::Rms;
        normed && after_attention.is_none() && after_mlp.is_none() && !parallel && self.residual_scale == 1.0
    }

    /// Returns the layers of llama, from which families differ. Fails for an unsupported activation.
    pub fn llama(c: &Config) -> Result<Self> {
        Ok(Self {
            names: Names {
                trunk: "model",
                embedding: "embed_tokens",
                embedding_norm: None,
                layers: "layers",
                final_norm: "norm",
            },
            norm: NormKind::Rms,
            wiring: Wiring {
                before_attention: Some("input_layernorm"),
                after_attention: None,
                before_mlp: Some("post_attention_layernorm"),
                after_mlp: None,
                parallel: false,
            },
            attention: AttentionDesign {
                module: "self_attn",
                projections: Projections::Separate,
                qkv_bias: c.attention_bias,
                output: "o_proj",
                output_bias: c.attention_bias,
                qk_norm: QkNorm::None,
                value_norm: false,
                interleaved: false,
                rotates: vec![true; c.num_hidden_layers as usize],
                scale: (c.head_dim as f64).powf(-0.5),
                softcap: None,
                alibi: None,
                relative: None,
                clip_qkv: None,
                sinks: false,
            },
            feed_forward: FeedForwardDesign {
                module: "mlp",
                layers: FeedForwardLayers::Gated,
                bias: c.mlp_bias,
                activation: Activation::named(c, &c.hidden_act)?,
            },
            sparsity: vec![0.0; c.num_hidden_layers as usize],
            experts: ExpertDesign {
                module: "mlp",
                router: "gate",
                bias: false,
                mlp: GatedMlpForm::Separate(GATED_MLP_NAMES),
                shared: SharedExpertNames { module: "shared_expert", gate: Some("shared_expert_gate") },
            },
            embedding_scale: 1.0,
            sinusoidal_positions: false,
            residual_scale: 1.0,
            logits: LogitChange::NONE,
        })
    }
}
