//! One layer: attention and MLP, the norms before and after them, and the residual additions.

use super::design::{Design, NormKind};
use super::feed_forward::FeedForward;
use super::layer_attention::LayerAttention;
use super::norm::Norm;
use crate::models::family::Config;
use crate::nn::{
    AwaitedUpdates, CollectedGradients, ForwardPass, LayerInput, Linear, ModuleScope, RelativeBias, Rope, ops,
};
use std::rc::Rc;
use tch::Tensor;

/// One layer of a decoder.
pub struct Block {
    before_attention: Option<Norm>,
    pub attention: LayerAttention,
    after_attention: Option<Norm>,
    before_mlp: Option<Norm>,
    feed_forward: FeedForward,
    after_mlp: Option<Norm>,
    parallel: bool,
    residual_scale: f64,
}

/// What a layer knows positions by.
pub struct LayerPositions {
    /// The rotary embedding that it has if it has one.
    pub rope: Rc<Rope>,
    /// Trained biases of scores, which all layers share.
    pub biases: Option<Rc<RelativeBias>>,
}

impl Block {
    /// Builds layer `i` at `scope`.
    pub fn build(c: &Config, scope: &ModuleScope, design: &Design, i: usize, positions: &LayerPositions) -> Self {
        let attention = LayerAttention::build(c, &(scope / design.attention.module), design, i, &positions.rope);
        let wiring = design.wiring;
        let norm = |name: Option<&str>| {
            let kind: NormKind = design.norm;
            name.map(|name| Norm::build(kind, &(scope / name), c.hidden_size, c.norm_eps))
        };
        Self {
            before_attention: norm(wiring.before_attention),
            attention: attention.with_biases(&positions.biases),
            after_attention: norm(wiring.after_attention),
            before_mlp: norm(wiring.before_mlp),
            feed_forward: FeedForward::build(c, scope, design, i),
            after_mlp: norm(wiring.after_mlp),
            parallel: wiring.parallel,
            residual_scale: design.residual_scale,
        }
    }

    /// Computes layer `i`: (T, D) -> (T, D). If the pass runs every layer in order, the result is also normalised for the
    /// `next` layer if that has low-rank updates: on CUDA together with the addition before it.
    pub fn forward(&self, i: usize, x: &Tensor, next: Option<&Self>, pass: &mut ForwardPass) -> Tensor {
        let _awaited = AwaitedUpdates::begin();
        let (x, y) = self.summands(i, x, pass);
        let next = next.filter(|next| pass.is_in_order() && next.has_updates());
        match next.and_then(|next| next.before_attention.as_ref()) {
            Some(norm) => {
                let (sum, input) = norm.forward_sum(&x, &y);
                pass.prepare_input(input);
                sum
            }
            None => ops::add(&x, &y),
        }
    }

    /// Computes the two tensors (T, D) whose sum is the layer's result.
    fn summands(&self, i: usize, x: &Tensor, pass: &mut ForwardPass) -> (Tensor, Tensor) {
        let (x, input) = match (pass.take_input(), &self.before_attention) {
            (Some(input), _) => (x.shallow_clone(), input),
            (None, Some(norm)) if self.has_updates() => norm.forward_beside(x),
            (None, Some(norm)) => (x.shallow_clone(), norm.forward(x)),
            (None, None) => (x.shallow_clone(), LayerInput::kept(x)),
        };
        if self.parallel {
            let of_mlp = match &self.before_mlp {
                Some(norm) => norm.forward(&x),
                None => input.shallow_clone(),
            };
            let y = self.added(&self.after_attention, self.attention.forward(i, input, pass));
            return (x + y, self.added(&self.after_mlp, self.feed_forward.forward(i, of_mlp, pass)));
        }
        let (input, _collected) = CollectedGradients::begin(input, || self.factors());
        let y = self.added(&self.after_attention, self.attention.forward(i, input, pass));
        let (x, input) = match &self.before_mlp {
            Some(norm) => norm.forward_sum(&x, &y),
            None => {
                let sum = x + y;
                let input = LayerInput::kept(&sum);
                (sum, input)
            }
        };
        (x, self.added(&self.after_mlp, self.feed_forward.forward(i, input, pass)))
    }

    fn linear_layers(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linear_layers().into_iter().chain(self.feed_forward.linear_layers())
    }

    /// Returns true if an adapter, active or not, has low-rank updates of linear layers. The results of these may be overwritten by sums.
    fn has_updates(&self) -> bool {
        self.linear_layers().any(Linear::has_update)
    }

    /// Returns the factors of the active adapter's low-rank updates.
    fn factors(&self) -> Vec<Tensor> {
        self.linear_layers().flat_map(Linear::factors).collect()
    }

    /// Returns what is added to the residual stream for the result of attention or MLP.
    fn added(&self, norm: &Option<Norm>, y: Tensor) -> Tensor {
        let y = match norm {
            Some(norm) => norm.forward(&y).x,
            None => y,
        };
        if self.residual_scale == 1.0 { y } else { y * self.residual_scale }
    }
}
