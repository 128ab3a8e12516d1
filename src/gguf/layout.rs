//! The types of the tables in [`super::families`]: how a family's tensors and settings are named in GGUF files and in
//! Hugging Face directories. The same tables serve reading and writing.

/// A family of models as GGUF files contain it.
#[derive(Debug)]
pub struct Family {
    /// The architecture's name in GGUF files, also the prefix of its metadata keys.
    pub arch: &'static str,
    /// `model_type` of a config.json that is made from a file.
    pub model_type: &'static str,
    /// Further values of `model_type` that are written as this architecture.
    pub relatives: &'static [&'static str],
    /// The class of transformers (`architectures` in config.json).
    pub class: &'static str,
    /// The kind of its norms.
    pub norm: NormKind,
    /// The biases of its linear layers.
    pub biases: Biases,
    /// How positions reach attention.
    pub rope: RopeUse,
    /// Rotary embedding may rotate a part of each head.
    pub partial_rotary: bool,
    /// Heads may have another size than `hidden_size` / `num_attention_heads`.
    pub free_head_size: bool,
    /// What llama.cpp does with sliding windows.
    pub windows: WindowUse,
    /// Layers of experts.
    pub experts: ExpertUse,
    /// Keys and values of all heads are made of one vector (multi-head latent attention).
    pub latent: bool,
    /// Activation functions of the MLP that the architecture stands for, by their names in config.json; the first one is
    /// written to a config.json. Empty: the family has one, which config.json does not name.
    pub activations: &'static [&'static str],
    /// The weight of the output head.
    pub head: HeadUse,
    /// Keys of config.json with another name than llama's: (llama's name, this family's).
    pub config_names: &'static [(&'static str, &'static str)],
    /// Keys of config.json that only some families have, and where GGUF files have them.
    pub settings: &'static [FamilyKey],
    /// Metadata that every file of this architecture has.
    pub constants: &'static [(&'static str, &'static str)],
    /// Tensors before the layers, with whole names.
    pub before: &'static [TensorRule],
    /// What the names of a layer's tensors begin with in a directory, up to the layer's number.
    pub layers: &'static str,
    /// Tensors of a layer without experts.
    pub layer: &'static [&'static [TensorRule]],
    /// Tensors after the layers, with whole names; the head is listed nowhere, it is `output` and `lm_head` everywhere.
    pub after: &'static [TensorRule],
}

/// The kind of a family's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Root mean square. Directories have the weight's difference from 1, GGUF files the weight.
    CentredRms,
    /// Layer norm, with a shift if `bias` is true.
    Layer {
        /// Norms have a shift.
        bias: bool,
    },
}

impl NormKind {
    /// Returns the metadata key of the number that norms add to the variance, and what config.json of llama-like families
    /// calls it.
    pub fn eps_key(self) -> &'static str {
        match self {
            Self::Rms | Self::CentredRms => "attention.layer_norm_rms_epsilon",
            Self::Layer { .. } => "attention.layer_norm_epsilon",
        }
    }
}

/// Whether a group of linear layers has biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasUse {
    /// No model has them.
    Never,
    /// Every model has them.
    Always,
    /// Some models have them; config.json and the file's tensors say so.
    Some,
}

/// The biases of a family's linear layers.
#[derive(Debug, Clone, Copy)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: BiasUse,
    /// That of the projection of attention's result.
    pub output: BiasUse,
    /// Those of the MLP.
    pub mlp: BiasUse,
}

impl Biases {
    /// No layer has a bias.
    pub const NONE: Self = Self { qkv: BiasUse::Never, output: BiasUse::Never, mlp: BiasUse::Never };
    /// Some models have biases everywhere or in attention or in the MLP.
    pub const SOME: Self = Self { qkv: BiasUse::Some, output: BiasUse::Some, mlp: BiasUse::Some };
    /// Every layer has a bias.
    pub const ALWAYS: Self = Self { qkv: BiasUse::Always, output: BiasUse::Always, mlp: BiasUse::Always };
}

/// How positions reach attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeUse {
    /// A table of trained vectors.
    Learnt,
    /// Not at all: scores fall with distance (ALiBi).
    Alibi,
    /// Rotary embedding, scaled linearly or by YaRN or not at all.
    Plain,
    /// The same, or scaled as Llama 3, with a tensor of divisors.
    Llama3,
    /// The same as `Plain`, or LongRoPE, with two tensors of divisors.
    Long,
    /// As `Plain`; layers with a window have a base of their own and no scaling.
    Local,
    /// As `Plain`; layers with a window have the same base and no scaling.
    LocalUnscaled,
}

/// What llama.cpp does with the window of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowUse {
    /// The architecture has none.
    None,
    /// The file has its size, and llama.cpp computes without it.
    Ignored,
    /// All layers but every `period`th have it, unless the file says otherwise.
    Period {
        /// llama.cpp's number for the family.
        period: u64,
        /// Every model of the family has windows.
        always: bool,
    },
}

/// Where a family with experts has their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertUse {
    /// The family has none.
    None,
    /// It has layers of experts.
    Experts {
        /// Their width has a key of its own; otherwise it is that of the MLP.
        own_width: bool,
        /// A further expert computes every token.
        shared: bool,
        /// llama.cpp divides the weights of a token's experts by their sum.
        renormalised: bool,
        /// config.json says whether it is so; otherwise the family always does it.
        stated: bool,
        /// The first layers may have one MLP, and the weights of a token's experts a factor.
        later: bool,
    },
}

/// Whether llama.cpp reads a head's weight of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadUse {
    /// Without one the embedding is the head.
    Optional,
    /// Files have it even where it is the embedding.
    Required,
    /// The head is always the embedding.
    Embedding,
}

/// A key of config.json that one family alone has, and its metadata key after the architecture's name.
#[derive(Debug, Clone, Copy)]
pub struct FamilyKey {
    /// The metadata key.
    pub gguf: &'static str,
    /// The key of config.json; behind a point, that within the section before it.
    pub config: &'static str,
    /// Its type.
    pub kind: FamilyKeyType,
}

impl RopeUse {
    /// Returns true if positions turn queries and keys.
    pub fn is_rotary(self) -> bool {
        !matches!(self, Self::Learnt | Self::Alibi)
    }
}

/// The type of a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FamilyKeyType {
    /// A number.
    Float,
    /// A number that models may lack.
    Optional,
    /// This number in every model.
    Fixed(f64),
    /// A truth value.
    Flag,
}

/// One tensor of a family, or one of every layer.
#[derive(Debug, Clone, Copy)]
pub struct TensorRule {
    /// Name in GGUF files, without `blk.N.` and `.weight`.
    pub gguf: &'static str,
    /// Name in directories, without the layer's prefix and `.weight`. `#` is the number of an expert.
    pub hf: &'static str,
    /// Shape in directories; of one expert, if `hf` names one.
    pub shape: &'static [Dim],
    /// How its numbers are arranged.
    pub layout: Layout,
    /// The group of layers whose biases it may have beside it.
    pub bias: BiasOf,
    /// Whether the layers of a model have it.
    pub presence: Presence,
}

/// Which layers of a model have a tensor. The names are those of tensors in GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Every model has it.
    Always,
    /// If they have the tensor of this name.
    With(&'static str),
    /// If they do not have it.
    Without(&'static str),
    /// Layers with experts.
    Sparse,
    /// Layers with one MLP.
    Dense,
}

/// A size that the dimensions of tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// 1.
    One,
    /// Rows of the embedding.
    Vocab,
    /// The context length.
    Positions,
    /// Width of the residual stream.
    Hidden,
    /// Width inside the MLP.
    Inner,
    /// Gate and up together.
    TwiceInner,
    /// All heads of the queries.
    Queries,
    /// All heads of the keys, or of the values.
    Keys,
    /// Queries, keys and values together.
    Qkv,
    /// One head.
    Head,
    /// Number of query heads.
    Heads,
    /// Number of key heads.
    KvHeads,
    /// Number of experts.
    Experts,
    /// Width inside an expert.
    ExpertInner,
    /// Gate and up of an expert together.
    TwiceExpertInner,
    /// Width inside the expert that computes every token.
    SharedInner,
    /// The vector that queries are made of.
    QueryRank,
    /// The vector that keys and values are made of.
    KeyValueRank,
    /// The same, and the rotated part of the key.
    KeyValueRankAndRotated,
    /// The parts of keys that are not rotated, and the values, of all heads.
    PlainKeysAndValues,
    /// The values of all heads.
    Values,
}

/// How the numbers of a tensor are arranged in GGUF files, compared with directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As they are.
    Same,
    /// The rows of each query head in pairs (0, E/2), (1, E/2 + 1), …
    TurnedQueries,
    /// The same for key heads.
    TurnedKeys,
    /// All queries, all keys, all values. Directories have, for each key head, its queries, its key and its value.
    Ungrouped,
    /// Transposed.
    Transposed,
    /// A norm's weight.
    Norm,
    /// A matrix of one row is a vector.
    Flat,
    /// The matrices of all experts in one tensor of three dimensions.
    Stacked,
    /// The same of every second row, from this one on: directories have gate and up in turn.
    StackedRows(usize),
    /// A vector whose name in directories does not end in `.weight`.
    Bare,
    /// Of the keys and values of each head, the rows of keys, transposed: (heads, in, rows).
    HeadKeys,
    /// The same of values, not transposed: (heads, rows, in).
    HeadValues,
}

/// The group whose biases decide whether a tensor has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasOf {
    /// It has none.
    None,
    /// Queries, keys and values.
    Qkv,
    /// The projection of attention's result.
    Output,
    /// The MLP.
    Mlp,
    /// Norms.
    Norm,
}

/// Describes a tensor that keeps its layout.
pub const fn same(gguf: &'static str, hf: &'static str, shape: &'static [Dim], bias: BiasOf) -> TensorRule {
    TensorRule { gguf, hf, shape, layout: Layout::Same, bias, presence: Presence::Always }
}

/// Describes a norm over `shape`.
pub const fn norm_of(gguf: &'static str, hf: &'static str, shape: &'static [Dim], bias: BiasOf) -> TensorRule {
    TensorRule { gguf, hf, shape, layout: Layout::Norm, bias, presence: Presence::Always }
}

/// Describes a norm over the width of the model.
pub const fn norm(gguf: &'static str, hf: &'static str) -> TensorRule {
    norm_of(gguf, hf, &[Dim::Hidden], BiasOf::Norm)
}

/// Says that layers have a tensor only if they have, or do not have, another one.
pub const fn only(presence: Presence, rule: TensorRule) -> TensorRule {
    TensorRule { presence, ..rule }
}

/// Describes a vector whose name in directories does not end in `.weight`.
pub const fn bare(gguf: &'static str, hf: &'static str, shape: &'static [Dim]) -> TensorRule {
    TensorRule { layout: Layout::Bare, ..same(gguf, hf, shape, BiasOf::None) }
}

/// Describes every second row, from row `from` on, of the matrices of all experts of a layer.
pub const fn stacked_rows(
    from: usize,
    gguf: &'static str,
    hf: &'static str,
    shape: &'static [Dim],
    bias: BiasOf,
) -> TensorRule {
    TensorRule { layout: Layout::StackedRows(from), bias, ..stacked(gguf, hf, shape) }
}

/// Describes the matrices of all experts of a layer.
pub const fn stacked(gguf: &'static str, hf: &'static str, shape: &'static [Dim]) -> TensorRule {
    TensorRule { gguf, hf, shape, layout: Layout::Stacked, bias: BiasOf::None, presence: Presence::Always }
}
