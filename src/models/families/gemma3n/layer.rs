//! One layer of Gemma 3n.

use super::Settings;
use super::streams::StreamUpdates;
use crate::models::blocks::{Activation, Design, FeedForward, LayerAttention, Norm};
use crate::models::family::Config;
use crate::nn::weight::cast;
use crate::nn::{ForwardPass, LayerInput, Linear, ModuleScope, Producer, Rope};
use std::rc::Rc;
use tch::Tensor;

/// One layer.
pub struct Layer {
    updates: StreamUpdates,
    before_attention: Norm,
    pub attention: LayerAttention,
    after_attention: Norm,
    low_rank: LowRankResidual,
    before_mlp: Norm,
    feed_forward: FeedForward,
    after_mlp: Norm,
    own_input: OwnInput,
}

/// A residual of low rank beside attention (LAuReL-LR: Menghani et al. 2024, arXiv 2411.07501, section 2.2), with a norm.
struct LowRankResidual {
    first: Linear,
    second: Linear,
    norm: Norm,
}

/// What the layer adds to all streams but the first: its own part of the second table of tokens, gated by the stream that
/// it has computed.
struct OwnInput {
    /// (D); `None`: the stream is not scaled.
    scale: Option<Tensor>,
    gate: Linear,
    activation: Activation,
    projection: Linear,
    norm: Norm,
}

impl Layer {
    /// Builds layer `i` at `scope`.
    pub fn build(
        c: &Config,
        scope: &ModuleScope,
        (design, s): (&Design, &Settings),
        i: usize,
        rope: &Rc<Rope>,
    ) -> Self {
        let d = c.hidden_size;
        let norm = |name: &str| Norm::build(design.norm, &(scope / name), d, c.norm_eps);
        let (updates, low_rank) = (scope / "altup", scope / "laurel");
        let scale = updates.vector_from_zero("correct_output_scale", d);
        Self {
            updates: StreamUpdates::build(c, &updates, s),
            before_attention: norm("input_layernorm"),
            attention: LayerAttention::build(c, &(scope / design.attention.module), design, i, rope),
            after_attention: norm("post_attention_layernorm"),
            low_rank: LowRankResidual {
                first: (&low_rank / "linear_left").linear(d, s.rank, false),
                second: (&low_rank / "linear_right").linear(s.rank, d, false),
                norm: Norm::build(design.norm, &(low_rank / "post_laurel_norm"), d, c.norm_eps),
            },
            before_mlp: norm("pre_feedforward_layernorm"),
            feed_forward: FeedForward::build(c, scope, design, i),
            after_mlp: norm("post_feedforward_layernorm"),
            own_input: OwnInput {
                scale: s.scales.then_some(scale),
                gate: (scope / "per_layer_input_gate").linear(d, s.input, false),
                activation: design.feed_forward.activation,
                projection: (scope / "per_layer_projection").linear(s.input, d, false),
                norm: norm("post_per_layer_input_norm"),
            },
        }
    }

    /// Computes layer `i`: the streams (T, n, D) -> (T, n, D).
    pub fn forward(&self, i: usize, streams: &Tensor, pass: &mut ForwardPass) -> Tensor {
        let predicted = self.updates.predict(streams);
        let active = self.updates.active_of(&predicted);
        let input = self.before_attention.forward(&active);
        let low_rank = self.low_rank.forward(input.shallow_clone());
        let attended = self.after_attention.forward(&self.attention.forward(i, input, pass)).x;
        let x = (active + attended + low_rank) / 2f64.sqrt();
        let y = self.feed_forward.forward(i, self.before_mlp.forward(&x), pass);
        let computed = x + self.after_mlp.forward(&y).x;
        let corrected = self.updates.correct(&predicted, &computed);
        let added = self.own_input.forward(&self.updates.active_of(&corrected), &pass.handed_on(Producer::Entrance)[i]);
        let others = corrected.size()[1] - 1;
        let changed = corrected.narrow(1, 1, others) + added.unsqueeze(1);
        Tensor::cat(&[corrected.narrow(1, 0, 1), changed], 1)
    }
}

impl LowRankResidual {
    /// Computes (T, D) -> (T, D).
    fn forward(&self, input: LayerInput) -> Tensor {
        let x = input.x.shallow_clone();
        x + self.norm.forward(&self.second.forward(&self.first.forward(input))).x
    }
}

impl OwnInput {
    /// Computes what is added, of the computed stream x (T, D) and the layer's part of the table (T, P): (T, D).
    fn forward(&self, x: &Tensor, part: &Tensor) -> Tensor {
        let x = match &self.scale {
            Some(scale) => x * cast(scale, x.kind()),
            None => x.shallow_clone(),
        };
        let gated = self.activation.gated(&self.gate.forward(&x), part);
        self.norm.forward(&self.projection.forward(gated)).x
    }
}
