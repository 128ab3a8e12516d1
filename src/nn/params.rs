//! Parameters under the checkpoint's own names, in the order in which they were built.

use super::quantised::{BaseQuantisation, QuantisedWeight};
use std::collections::BTreeSet;
use tch::Tensor;

/// The kind of layer that a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A linear layer between two widths of the model.
    Linear,
    /// The router of a layer of experts; `all-linear` leaves it out, and it is not quantised when it is loaded.
    Router,
    /// The output head; `all-linear` leaves it out.
    Head,
    /// The embedding of tokens.
    Embedding,
    /// Another trained table of vectors: of positions, or of tokens beside their embedding.
    Table,
    /// A norm.
    Norm,
    /// The scalar head of a reward or value model; `all-linear` leaves it out.
    Score,
}

/// Ending of the names of single rows of a table that an adapter trains beside it.
pub const TOKEN_ROWS: &str = "trainable_tokens_delta";

/// Whether a parameter is stored in 4 or 8 bits.
#[derive(Debug, Clone, Default)]
pub enum QuantisedParam {
    /// It never is: neither the weight of a linear layer between two widths nor a table of tokens, or trained by an adapter
    /// in full.
    #[default]
    Never,
    /// The weight of a linear layer: it would be if the model were loaded with quantised weights.
    Possible,
    /// A table of tokens, or the weight of an output head: it would be if the model were loaded with quantised embeddings.
    PossibleTable,
    /// It is.
    Done(QuantisedWeight),
}

/// A named tensor of the model or of one of its adapters.
pub struct Param {
    /// The name it has on disk, e.g. `model.layers.0.self_attn.q_proj.weight` or `….q_proj.lora_A.weight`.
    pub name: String,
    /// The values, as stored; a leaf if they are trained. Of a quantised weight these are the codes.
    pub tensor: Tensor,
    /// Whether the parameter is quantised.
    pub quantised: QuantisedParam,
    /// The kind of the layer that it belongs to.
    pub layer: LayerKind,
    /// Number of the adapter that it belongs to; `None`: the base.
    pub adapter: Option<usize>,
    /// True for a linear layer's weight that is stored as in its file, (in, out), and used as (out, in).
    pub transposed: bool,
    /// True for factors or differences of single features, whatever their shape.
    pub scale: bool,
}

impl Param {
    /// Returns true if the parameter is trained.
    pub fn trainable(&self) -> bool {
        self.tensor.requires_grad()
    }

    /// Returns the shape, which for a quantised weight is not that of its tensor.
    pub fn shape(&self) -> Vec<i64> {
        match &self.quantised {
            QuantisedParam::Done(weight) => weight.shape().to_vec(),
            _ => self.tensor.size(),
        }
    }

    /// Returns the number of parameters, which for a quantised weight is not the size of its tensor.
    pub fn count(&self) -> u64 {
        match &self.quantised {
            QuantisedParam::Done(weight) => weight.count(),
            _ => self.tensor.numel() as u64,
        }
    }

    /// Returns the size in bytes that the parameter has if the base is quantised as `format` says; `None` if it is not
    /// quantised then. A weight that is quantised already stays as it is.
    pub fn quantised_bytes(&self, format: Option<BaseQuantisation>) -> Option<u64> {
        let shape = |[a, b]: [i64; 2]| if self.transposed { [b, a] } else { [a, b] };
        match (&self.quantised, &self.tensor.size()[..]) {
            (QuantisedParam::Done(weight), _) => Some(weight.bytes()),
            // A scale of int8 is for a row of outputs: the second size of a weight stored as (in, out).
            (QuantisedParam::Possible, &[a, b]) => Some(format?.linear.bytes(shape([a, b]))),
            (QuantisedParam::PossibleTable, &[a, b]) => Some(format?.embeddings?.quantisation().bytes(shape([a, b]))),
            _ => None,
        }
    }

    /// Returns true for matrices, which weight decay applies to; norms and biases have one dimension, and factors of single
    /// features may be written as a row or column.
    pub fn is_matrix(&self) -> bool {
        self.tensor.dim() >= 2 && self.layer != LayerKind::Norm && !self.scale
    }
}

/// All parameters of a model, in the order in which they were built.
#[derive(Default)]
pub struct ParamStore {
    params: Vec<Param>,
    /// True if a run trains the base's parameters in turn.
    in_turn: bool,
}

impl ParamStore {
    /// Returns all parameters.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.params.iter()
    }

    /// Returns the trained parameters.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.trainable())
    }

    /// Declares that a run trains the base's parameters in turn, so that at a time only some of them are trained.
    pub fn train_in_turn(&mut self) {
        self.in_turn = true;
    }

    /// Returns the parameters that a run changes: those that are trained now, and those whose turn is another time.
    pub fn trained_in_run(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.trainable() || (self.in_turn && p.adapter.is_none()))
    }

    /// Returns the parameters that a checkpoint contains: those that the run changes, and what their adapters keep unchanged beside
    /// them. Copies of the base's weights are left out, because the base has them.
    pub fn state(&self) -> impl Iterator<Item = &Param> {
        let trained: BTreeSet<usize> = self.trainable().filter_map(|p| p.adapter).collect();
        let kept = move |p: &Param| {
            p.adapter.is_some_and(|id| trained.contains(&id)) && !p.name.ends_with(".base_layer.weight")
        };
        let in_turn = self.in_turn;
        self.params.iter().filter(move |p| p.trainable() || (in_turn && p.adapter.is_none()) || kept(p))
    }

    /// Returns the base's parameters.
    pub fn base(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|p| p.adapter.is_none())
    }

    /// Returns one adapter's parameters, by the adapter's number.
    pub fn adapter(&self, id: usize) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(move |p| p.adapter == Some(id))
    }

    /// Returns the name of the first parameter with NaN or infinite values. Slow, because it reads every number:
    /// meant for when a step has already failed.
    pub fn first_non_finite(&self) -> Option<&str> {
        let _no_grad = tch::no_grad_guard();
        let broken = |p: &&Param| p.tensor.isfinite().all().int64_value(&[]) == 0;
        self.params.iter().find(broken).map(|p| p.name.as_str())
    }

    pub(super) fn add(&mut self, param: Param) {
        debug_assert!(!self.params.iter().any(|p| p.name == param.name && p.adapter == param.adapter));
        self.params.push(param);
    }
}
