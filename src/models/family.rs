//! What a family of models provides ([`Family`], [`Decoder`]), and the sizes that it is built with ([`Config`]).

use super::blocks::{self, Design};
use super::checkpoint::layer_number;
use super::stored::StoredFormat;
use crate::error::{Error, Result};
use crate::nn::{Attention, Cell, ForwardPass, Linear, ModelBuilder, ParamMapping, RopeScaling, Tokens};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::Tensor;

/// A decoder-only model of one family: how each part of it is computed.
pub trait Decoder {
    /// Returns the number of layers.
    fn depth(&self) -> usize;
    /// Embeds a packed row: (T) tokens -> (T, D).
    fn embed(&self, tokens: &Tokens) -> Tensor;
    /// Makes the first layer's input of embedded tokens: (T, D) -> (T, W), where W is the width of what goes from layer to
    /// layer. What layers read beside it is handed on in the pass ([`Producer::Entrance`](crate::nn::Producer)).
    fn enter(&self, x: Tensor, _tokens: &Tokens, _pass: &mut ForwardPass) -> Tensor {
        x
    }
    /// Returns the numbers per token that layers have beside those that every decoder has.
    fn more_numbers(&self) -> MoreNumbers {
        MoreNumbers::default()
    }
    /// Returns the number of tokens that layers have vectors for; `None`: all of the vocabulary.
    fn known_tokens(&self) -> Option<i64> {
        None
    }
    /// Returns the trained vectors of positions (T), which `embed` adds to those of tokens: (T, D). `None` if positions have
    /// no vectors.
    fn embed_positions(&self, _positions: &Tensor) -> Option<Tensor> {
        None
    }
    /// Computes layer `i`: (T, W) -> (T, W).
    fn layer(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> Tensor;
    /// Applies the final norm, between the last layer and the head: (T, W) -> (T, D).
    fn finish(&self, x: &Tensor) -> Tensor;
    /// Returns the output head: (…, D) -> (…, V).
    fn head(&self) -> &Rc<Linear>;
    /// Returns the settings of layer `i`'s attention; `None` if it has none.
    fn attention(&self, _i: usize) -> Option<Attention> {
        None
    }
    /// Returns the recurrence of the layers; `None` if they are not recurrent.
    fn recurrence(&self) -> Option<Cell> {
        None
    }
    /// Returns the length up to which sequences are rotated by other frequencies than beyond it, if there is such a length.
    fn rotation_switch(&self) -> Option<i64> {
        None
    }
    /// Returns true if the MLP of each layer multiplies its inner activations by those of a gate.
    fn has_gates(&self) -> bool {
        true
    }
    /// Returns the longest sequence that the model has position embeddings for; `None` if there is no limit.
    fn longest(&self) -> Option<i64> {
        None
    }
}

/// Numbers per token that the layers of a decoder have beside those that every decoder has, for the prediction of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MoreNumbers {
    /// Of what goes from layer to layer, beyond D.
    pub between_layers: i64,
    /// That a layer keeps for its backward, beyond its attention and MLP.
    pub kept: i64,
    /// That a layer keeps once more where its queries, keys and values are columns of one matrix: parts of it are kept beside what is
    /// made of them.
    pub kept_if_joined: i64,
    /// Attention and MLP read what goes from layer to layer itself, not a norm of it.
    pub without_first_norms: bool,
    /// That its MLP keeps, beyond the inputs of its activation.
    pub kept_in_mlp: i64,
    /// That exist from the first layer to the last, because layers read them.
    pub handed_on: i64,
    /// That what lies before and after the layers keeps for its backward, if the first layer does not run again.
    pub around_layers: i64,
}

/// One entry of the table of families.
#[derive(Debug)]
pub struct Family {
    /// `model_type` values of config.json that this family serves.
    pub names: &'static [&'static str],
    /// The class of transformers for each of the names (`architectures` in config.json).
    pub architectures: &'static [&'static str],
    /// Keys of config.json that have another name than in llama's: (llama's name, this family's).
    pub key_names: &'static [(&'static str, &'static str)],
    /// Fills in transformers' defaults for keys that config.json lacks.
    pub defaults: fn(&mut Map<String, Value>),
    /// Keys of other families that transformers does not read for this one, so that a stray one changes nothing.
    pub foreign_keys: &'static [&'static str],
    /// Keys that a new config.json of this family has in addition to those of every family.
    pub extra_keys: &'static [&'static str],
    /// Name of the embedding's weight, which a tied output head shares.
    pub embedding: &'static str,
    /// Maps a tensor's name in a checkpoint to the model's parameter; `None`: it is not a parameter.
    pub map_param: fn(&str) -> Option<ParamMapping>,
    /// Checkpoints have the weights of all experts of a layer in one tensor (`models::stacks`).
    pub stacked_experts: bool,
    /// What the decoder is made of.
    pub layers: FamilyLayers,
}

/// What a family's decoder is made of. Both functions fail if the config asks for something that the family does not support.
#[derive(Debug, Clone, Copy)]
pub enum FamilyLayers {
    /// The layers that decoders share, as the design describes them.
    Shared(fn(&Config) -> Result<Design>),
    /// Layers of the family's own, as the function builds them.
    Own(fn(&Config, &ModelBuilder) -> Result<Box<dyn Decoder>>),
}

impl Family {
    /// Builds the decoder.
    pub(super) fn build(&self, config: &Config, builder: &ModelBuilder) -> Result<Box<dyn Decoder>> {
        match self.layers {
            FamilyLayers::Shared(design) => blocks::build(config, builder, design(config)?),
            FamilyLayers::Own(build) => build(config, builder),
        }
    }
}

/// The layers of experts of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSizes {
    /// E, the number of experts of a layer.
    pub count: i64,
    /// k, the number of experts that compute a token.
    pub chosen: i64,
    /// The width inside an expert.
    pub width: i64,
    /// The weights of a token's experts are divided by their sum.
    pub renormalise: bool,
    /// The groups of neighbouring experts, and from how many of them a token's experts are taken; `None`: from all experts.
    pub groups: Option<(i64, i64)>,
    /// Factor on the weights of a token's experts.
    pub scale: f64,
    /// The width inside the expert that computes every token, if there is one.
    pub shared_width: Option<i64>,
    /// Which layers have experts; the others have one MLP.
    pub sparse: Vec<bool>,
    /// The coefficient that load balancing has in pretraining (`router_aux_loss_coef`).
    pub balance: f64,
}

/// How files have the weights of a layer's experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertFiles {
    /// The model's family has no experts.
    #[default]
    None,
    /// Each expert's by themselves. transformers stacks them in memory.
    Single,
    /// Those of all experts, of this number, in one tensor.
    Stacked(i64),
}

/// The sizes and settings of a model, from its config.json.
#[derive(Debug, Clone)]
pub struct Config {
    /// `model_type` of config.json.
    pub model_type: String,
    /// D, the width of the residual stream.
    pub hidden_size: i64,
    /// F, the width inside the MLP: the largest of all layers'.
    pub intermediate_size: i64,
    /// The width inside the MLP of each layer.
    pub intermediate_sizes: Vec<i64>,
    /// The number of layers.
    pub num_hidden_layers: i64,
    /// H, the number of query heads.
    pub num_attention_heads: i64,
    /// K, the number of key and value heads.
    pub num_key_value_heads: i64,
    /// E, the size of a head.
    pub head_dim: i64,
    /// V, the number of rows of the embedding.
    pub vocab_size: i64,
    /// The number that norms add to the variance.
    pub norm_eps: f64,
    /// Embedding and output head share one weight.
    pub tie_word_embeddings: bool,
    /// The linear layers of attention have a bias.
    pub attention_bias: bool,
    /// The linear layers of the MLP have a bias.
    pub mlp_bias: bool,
    /// The MLP's activation function, by its name in transformers.
    pub hidden_act: String,
    /// How many numbers of a head rotary embedding rotates: E, or fewer.
    pub rotary_size: i64,
    /// The base of rotary embedding.
    pub rope_theta: f64,
    /// How rotary embedding is changed for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Base and scaling of the layers with a window, if they have others than the rest.
    pub local_rope: Option<(f64, RopeScaling)>,
    /// The context that the model was made for, in tokens.
    pub max_position_embeddings: Option<i64>,
    /// For each layer the number of tokens that a token sees, itself included; `None`: all before it.
    pub windows: Vec<Option<i64>>,
    /// For each layer the layer whose keys and values it reads: itself, or one before all layers without their own.
    pub key_value_layers: Vec<usize>,
    /// The layers of experts; `None` if the model has none.
    pub experts: Option<ExpertSizes>,
    /// How the matrices of the checkpoint are stored quantised; `None`: they are not.
    pub stored: Option<StoredFormat>,
    /// Standard deviation of a new model's random weights.
    pub initializer_range: f64,
    /// The file's keys with transformers' defaults filled in, for those that one family alone reads.
    pub settings: Map<String, Value>,
    /// The file as read, for writing it back with only the changes made.
    pub raw: Value,
    /// The file's text as read.
    pub text: String,
    pub(super) family: &'static Family,
    pub(super) file: PathBuf,
}

impl Config {
    /// Returns the file it was read from, for messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the family that builds the model.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Returns a number that only some families have; `default` if the key is missing, null or no number.
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.settings.get(key).and_then(Value::as_f64).unwrap_or(default)
    }

    /// Returns a truth value that only some families have; `default` if the key is missing or is something else.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.settings.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Returns the error that config.json asks for something that its family does not support.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::user(format!("{}: {what}", self.file.display()))
    }

    /// Lists the dropouts that config.json requests for training, as `key value`. None of them is applied: only
    /// adapters have dropout here.
    pub fn dropouts(&self) -> Vec<String> {
        let asked = |key: &str| self.raw.get(key).and_then(Value::as_f64).filter(|p| *p > 0.0);
        let keys =
            ["attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "resid_pdrop", "router_jitter_noise"];
        keys.iter().filter_map(|key| asked(key).map(|p| format!("{key} {p}"))).collect()
    }

    /// Returns true if the layers have attention and MLPs, false if they are recurrent.
    pub fn has_attention(&self) -> bool {
        !self.family.foreign_keys.contains(&"num_attention_heads")
    }

    /// Returns true for a family that only ft writes and reads.
    pub fn is_own_family(&self) -> bool {
        self.model_type.starts_with("ft_")
    }

    /// Returns the number of MLPs that compute a token in layer `i`, and the sum of the widths inside them.
    pub fn feed_forward(&self, i: usize) -> (i64, i64) {
        match self.experts.as_ref().filter(|experts| experts.sparse[i]) {
            None => (1, self.intermediate_sizes[i]),
            Some(experts) => {
                let shared = experts.shared_width;
                (experts.chosen + i64::from(shared.is_some()), experts.chosen * experts.width + shared.unwrap_or(0))
            }
        }
    }

    /// Returns true if keys and values are made of one vector of a few numbers (`models::blocks`).
    pub fn has_latent_attention(&self) -> bool {
        self.family.extra_keys.contains(&"kv_lora_rank")
    }

    /// Returns true if layers read vectors of the tokens beside their input, and may read keys and values of other layers: they
    /// cannot be taken apart.
    pub fn has_layer_inputs(&self) -> bool {
        self.family.extra_keys.contains(&"hidden_size_per_layer_input")
    }

    /// Returns the width of what goes from layer to layer.
    pub fn stream_width(&self) -> i64 {
        let streams = if self.has_layer_inputs() { self.number("altup_num_inputs", 1.0) as i64 } else { 1 };
        self.hidden_size * streams
    }

    /// Returns true if MLPs have gates that are 0 below a bound: the loss turns where one reaches it.
    pub fn has_sparse_gates(&self) -> bool {
        let pattern = self.settings.get("activation_sparsity_pattern").filter(|_| self.has_layer_inputs());
        pattern.and_then(Value::as_array).is_some_and(|list| list.iter().any(|share| share.as_f64() > Some(0.0)))
    }

    /// Fails if layers cannot be taken apart; `what` asks for that.
    pub fn require_separate_layers(&self, what: &str) -> Result<()> {
        if !self.has_layer_inputs() {
            return Ok(());
        }
        Err(self
            .refuse(format!(
                "{what}: the layers of a {} model read parts of one table of tokens, and keys and values of each other",
                self.model_type
            ))
            .hint("all layers have to stay as they are"))
    }

    /// Returns true for a parameter that a checkpoint may have and no layer reads: those of keys and values in layers that read
    /// another layer's.
    pub fn leaves_out(&self, name: &str) -> bool {
        let shares = |i: usize| self.key_value_layers.get(i).is_some_and(|source| *source != i);
        layer_number(name).is_some_and(shares)
            && [".k_proj.", ".v_proj.", ".k_norm.", ".v_norm."].iter().any(|part| name.contains(part))
    }

    /// Returns how the model's files have the weights of a layer's experts.
    pub fn expert_files(&self) -> ExpertFiles {
        match (self.stacked_experts(), &self.experts) {
            (Some(experts), _) => ExpertFiles::Stacked(experts),
            (None, Some(_)) => ExpertFiles::Single,
            (None, None) => ExpertFiles::None,
        }
    }

    /// Returns the number of experts of a layer if the model's files have their weights in one tensor (`models::stacks`).
    pub fn stacked_experts(&self) -> Option<i64> {
        self.experts.as_ref().filter(|_| self.family.stacked_experts).map(|experts| experts.count)
    }

    /// Returns the names of the weights that embedding and output head share; empty if each has its own.
    pub fn tied_weights(&self) -> Vec<&'static str> {
        if self.tie_word_embeddings { vec![self.family.embedding, "lm_head.weight"] } else { Vec::new() }
    }
}
