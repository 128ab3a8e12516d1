//! The tree of modules, from which families build layers by name and shape.

use super::{ModelBuilder, WeightSource};
use crate::nn::adapter::{AdapterSite, LayerAdapters};
use crate::nn::embedding::Embedding;
use crate::nn::layer_norm::LayerNorm;
use crate::nn::linear::{Linear, LogitChange};
use crate::nn::norm::RmsNorm;
use crate::nn::params::LayerKind;
use crate::nn::weight::{Dense, Weight};
use std::fmt::Display;
use std::ops::Div;
use tch::{Device, Kind, Tensor};

/// A position in the tree of modules, from which layers are built: `&scope / "self_attn" / "q_proj"`.
#[derive(Clone)]
pub struct ModuleScope<'b> {
    pub(super) builder: &'b ModelBuilder<'b>,
    pub(super) path: String,
    pub(super) std_factor: f64,
}

impl<'b, T: Display> Div<T> for &ModuleScope<'b> {
    type Output = ModuleScope<'b>;
    fn div(self, name: T) -> ModuleScope<'b> {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        ModuleScope { builder: self.builder, path, std_factor: self.std_factor }
    }
}

impl<'b, T: Display> Div<T> for ModuleScope<'b> {
    type Output = ModuleScope<'b>;
    fn div(self, name: T) -> ModuleScope<'b> {
        &self / name
    }
}

impl ModuleScope<'_> {
    /// Returns the device of the layers.
    pub fn device(&self) -> Device {
        self.builder.device
    }

    /// Returns the number format of the arithmetic.
    pub fn kind(&self) -> Kind {
        self.builder.kind
    }

    /// Multiplies the standard deviation of random weights below this position by `factor`.
    pub fn scale_std(self, factor: f64) -> Self {
        ModuleScope { std_factor: factor, ..self }
    }

    /// Builds a linear layer with `weight` (out, in) and, if `bias` is true, `bias` (out).
    pub fn linear(&self, inputs: i64, outputs: i64, bias: bool) -> Linear {
        self.linear_layer(LayerKind::Linear, inputs, outputs, bias)
    }

    /// Builds the router of a layer of experts.
    pub fn router(&self, inputs: i64, experts: i64, bias: bool) -> Linear {
        self.linear_layer(LayerKind::Router, inputs, experts, bias)
    }

    /// Reads the parameter `name` (count) of this module itself, which belongs to no layer within it, such as the sinks of
    /// attention.
    pub fn vector(&self, name: &str, count: i64) -> Tensor {
        self.param(name, LayerKind::Linear, &[count])
    }

    /// Does the same for a vector that begins with zeros in a new model.
    pub fn vector_from_zero(&self, name: &str, count: i64) -> Tensor {
        let new = matches!(self.builder.source, WeightSource::Random(_));
        let zeros = new.then(|| Tensor::zeros([count], (Kind::Float, Device::Cpu)));
        self.param_or_default(name, LayerKind::Linear, &[count], zeros)
    }

    /// Reads the `weight` of this module (buckets, heads): biases of the scores of attention.
    pub fn bias_table(&self, buckets: i64, heads: i64) -> Tensor {
        self.param("weight", LayerKind::Table, &[buckets, heads])
    }

    /// Builds an output head with its own weight.
    pub fn output_head(&self, inputs: i64, outputs: i64) -> Linear {
        match self.builder.headless.get() {
            true => self.empty_head(inputs),
            false => {
                let weight = self.token_table_weight(LayerKind::Head, [outputs, inputs]);
                let adapters = self.attach(LayerKind::Head, &weight, None);
                Linear { dense: Dense { weight, bias: None }, adapters, logits: LogitChange::NONE, summed: false }
            }
        }
    }

    fn empty_head(&self, inputs: i64) -> Linear {
        self.builder.used.borrow_mut().insert((self / "weight").path);
        let weight = Tensor::zeros([0, inputs], (self.builder.kind, self.builder.device)).into();
        let adapters = LayerAdapters { switches: self.builder.switches.clone(), list: Vec::new() };
        Linear { dense: Dense { weight, bias: None }, adapters, logits: LogitChange::NONE, summed: false }
    }

    /// Builds the scalar head (1, D) of a reward or value model. If the checkpoint has none, its weight starts at
    /// zero, so that every score is 0 until it is trained.
    pub fn score_head(&self, inputs: i64) -> Linear {
        let zeros = Tensor::zeros([1, inputs], (Kind::Float, Device::Cpu));
        let weight = self.param_or_default("weight", LayerKind::Score, &[1, inputs], Some(zeros)).into();
        let adapters = self.attach(LayerKind::Score, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters, logits: LogitChange::NONE, summed: false }
    }

    /// Builds an output head that shares the embedding's weight.
    pub fn tied_head(&self, embedding: &Embedding) -> Linear {
        if self.builder.headless.get() {
            return self.empty_head(embedding.weight.shape()[1]);
        }
        let weight = embedding.weight.shallow_clone();
        let adapters = self.attach(LayerKind::Head, &weight, None);
        Linear { dense: Dense { weight, bias: None }, adapters, logits: LogitChange::NONE, summed: false }
    }

    fn linear_layer(&self, layer: LayerKind, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let (weight, unquantised) = self.linear_weight(layer, &[outputs, inputs]);
        let bias = bias.then(|| self.param("bias", layer, &[outputs]));
        let adapters = self.attach_to(layer, &weight, unquantised.as_ref(), bias.as_ref());
        Linear { dense: Dense { weight, bias }, adapters, logits: LogitChange::NONE, summed: false }
    }

    /// Builds an embedding of `count` tokens.
    pub fn embedding(&self, count: i64, width: i64) -> Embedding {
        self.table(LayerKind::Embedding, self.token_table_weight(LayerKind::Embedding, [count, width]))
    }

    /// Builds a table of `count` tokens beside the embedding of tokens.
    pub fn other_token_table(&self, count: i64, width: i64) -> Embedding {
        self.table(LayerKind::Table, self.token_table_weight(LayerKind::Table, [count, width]))
    }

    /// Builds a table of `count` positions.
    pub fn position_table(&self, count: i64, width: i64) -> Embedding {
        let (layer, shape) = (LayerKind::Table, [count, width]);
        let weight = match self.stored_quantised("weight") {
            Some(matrix) => self.quantised_weight("weight", matrix, layer, &shape, self.trained_in_full(layer)),
            None => self.param("weight", layer, &shape).into(),
        };
        self.table(layer, weight)
    }

    fn table(&self, layer: LayerKind, weight: Weight) -> Embedding {
        let adapters = self.attach(layer, &weight, None);
        Embedding { weight, adapters, kind: self.builder.kind }
    }

    /// Builds a root-mean-square norm with `weight` (width).
    pub fn rms_norm(&self, width: i64, eps: f64) -> RmsNorm {
        let weight = self.param("weight", LayerKind::Norm, &[width]);
        let adapters = self.attach(LayerKind::Norm, &weight.shallow_clone().into(), None);
        RmsNorm { weight, offset: 0.0, adapters, eps }
    }

    /// Builds a root-mean-square norm whose `weight` (width) is the difference of its scale from 1.
    pub fn centred_rms_norm(&self, width: i64, eps: f64) -> RmsNorm {
        let new = matches!(self.builder.source, WeightSource::Random(_));
        let zeros = new.then(|| Tensor::zeros([width], (Kind::Float, Device::Cpu)));
        let weight = self.param_or_default("weight", LayerKind::Norm, &[width], zeros);
        let adapters = self.attach(LayerKind::Norm, &weight.shallow_clone().into(), None);
        RmsNorm { weight, offset: 1.0, adapters, eps }
    }

    /// Builds a layer norm with `weight` and `bias` (width).
    pub fn layer_norm(&self, width: i64, eps: f64) -> LayerNorm {
        self.layer_norm_of(&[width], true, eps)
    }

    /// Builds a layer norm with a `weight` of this shape, (width) or (heads, width), and with or without a `bias`.
    pub fn layer_norm_of(&self, shape: &[i64], bias: bool, eps: f64) -> LayerNorm {
        let weight = self.param("weight", LayerKind::Norm, shape);
        let bias = bias.then(|| self.param("bias", LayerKind::Norm, shape));
        let adapters = self.attach(LayerKind::Norm, &weight.shallow_clone().into(), bias.as_ref());
        LayerNorm { weight, bias, adapters, eps }
    }

    fn attach(&self, layer: LayerKind, weight: &Weight, bias: Option<&Tensor>) -> LayerAdapters {
        self.attach_to(layer, weight, None, bias)
    }

    fn attach_to(
        &self,
        layer: LayerKind,
        weight: &Weight,
        unquantised: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> LayerAdapters {
        let b = self.builder;
        let tied = b.tied.get() && matches!(layer, LayerKind::Head | LayerKind::Embedding);
        let site = AdapterSite { name: &self.path, layer, weight, unquantised, bias, tied };
        let mut list = Vec::new();
        for (id, adapter) in b.adapters.iter().enumerate() {
            let mut add = |name: &str, t: Tensor, role| b.register(id, layer, format!("{}.{name}", self.path), t, role);
            match adapter.attach(&site, &mut add) {
                Ok(Some(a)) => list.push((id, a)),
                Ok(None) => {}
                Err(e) => {
                    b.error.borrow_mut().get_or_insert(e);
                }
            }
        }
        LayerAdapters { switches: b.switches.clone(), list }
    }
}
