//! The attention of a layer, of one of the kinds that families have.

use super::design::{Design, Projections};
use super::latent_attention::LatentAttention;
use super::self_attention::SelfAttention;
use super::sharing_attention::SharingAttention;
use crate::models::family::Config;
use crate::nn::{Attention, ForwardPass, LayerInput, Linear, ModuleScope, RelativeBias, Rope};
use std::rc::Rc;
use tch::Tensor;

/// The attention of one layer.
pub enum LayerAttention {
    /// Keys and values of each head are made of the layer's input.
    Plain(SelfAttention),
    /// They are made of one vector of a few numbers.
    Latent(LatentAttention),
    /// They are those of an earlier layer.
    Sharing(SharingAttention),
}

impl LayerAttention {
    /// Builds the attention of layer `i` at `scope`. `rope` is the rotary embedding that the layer has if it has one.
    pub fn build(c: &Config, scope: &ModuleScope, design: &Design, i: usize, rope: &Rc<Rope>) -> Self {
        match design.attention.projections {
            _ if c.key_value_layers[i] != i => Self::Sharing(SharingAttention::build(c, scope, design, i, rope)),
            Projections::Latent(sizes) => Self::Latent(LatentAttention::build(c, scope, (design, sizes), i, rope)),
            _ => Self::Plain(SelfAttention::build(c, scope, design, i, rope)),
        }
    }

    /// Gives the scores trained biases by distance, which layers share.
    pub fn with_biases(mut self, biases: &Option<Rc<RelativeBias>>) -> Self {
        let attention = match &mut self {
            Self::Plain(attention) => &mut attention.attention,
            Self::Latent(attention) => &mut attention.attention,
            Self::Sharing(attention) => &mut attention.attention,
        };
        attention.relative = biases.clone();
        self
    }

    /// Computes layer `i`'s attention: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        match self {
            Self::Plain(attention) => attention.forward(i, input, pass),
            Self::Latent(attention) => attention.forward(i, input, pass),
            Self::Sharing(attention) => attention.forward(i, input, pass),
        }
    }

    /// Returns the layers whose gradients can be computed together with those of the MLP.
    pub fn linear_layers(&self) -> Vec<&Linear> {
        match self {
            Self::Plain(attention) => attention.linear_layers(),
            Self::Latent(_) | Self::Sharing(_) => Vec::new(),
        }
    }

    /// Returns its settings.
    pub fn settings(&self) -> Attention {
        match self {
            Self::Plain(attention) => attention.attention.clone(),
            Self::Latent(attention) => attention.attention.clone(),
            Self::Sharing(attention) => attention.attention.clone(),
        }
    }

    /// Returns the length up to which sequences are rotated by other frequencies than beyond it, if there is such a length.
    pub fn rotation_switch(&self) -> Option<i64> {
        match self {
            Self::Plain(attention) => attention.rotation_switch(),
            Self::Latent(attention) => attention.rotation_switch(),
            Self::Sharing(attention) => attention.rotation_switch(),
        }
    }
}
