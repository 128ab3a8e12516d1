//! The router of a layer of experts: which experts compute a token, and with which weights.

use crate::nn::builder::ModuleScope;
use crate::nn::layer_input::LayerInput;
use crate::nn::linear::Linear;
use crate::nn::recomputed::recomputed;
use tch::{Kind, Tensor};

/// A linear layer whose outputs are the logits of the experts. It computes in float32, in whatever format the model does:
/// a rounded logit may choose another expert.
pub struct Router {
    gate: Linear,
    chosen: i64,
    renormalise: bool,
}

/// The experts of each token of a row, and their weights.
pub(super) struct Routing {
    /// (T, E) float32
    logits: Tensor,
    /// (T, k) numbers of the experts, the most probable first.
    pub choices: Tensor,
    /// (T, k) float32
    pub weights: Tensor,
}

/// What terms of the loss need of the routing of one layer's tokens.
#[derive(Debug)]
pub struct RouterStatistics {
    /// (E) the probability of each expert, summed over the tokens.
    pub probabilities: Tensor,
    /// The square of the logarithm of the sum of the exponentials of a token's logits, summed over the tokens: a scalar.
    pub squares: Tensor,
    /// How many tokens each expert was chosen for.
    pub counts: Vec<i64>,
    /// The number of tokens.
    pub tokens: i64,
}

impl RouterStatistics {
    /// Returns the same statistics cut off from the graph, as new leaves that collect a gradient.
    pub fn as_leaves(&self) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        let (probabilities, squares) = (leaf(&self.probabilities), leaf(&self.squares));
        Self { probabilities, squares, counts: self.counts.clone(), tokens: self.tokens }
    }
}

impl Router {
    /// Builds the router at `scope`, whose `weight` is (experts, width): the `chosen` most probable experts compute a
    /// token. With `renormalise`, their probabilities are divided by their sum.
    pub fn build(scope: &ModuleScope, width: i64, experts: i64, chosen: i64, renormalise: bool) -> Self {
        Self { gate: scope.router(width, experts), chosen, renormalise }
    }

    /// Routes the tokens of `input` (T, D).
    pub(super) fn route(&self, input: &LayerInput) -> Routing {
        let logits = self.gate.forward(input.map_rows(|x| x.to_kind(Kind::Float))); // (T, E)
        let choices = tch::no_grad(|| logits.softmax(-1, Kind::Float).topk(self.chosen, -1, true, true).1);
        let (picked, renormalise) = (choices.shallow_clone(), self.renormalise);
        let weights = recomputed(&logits, &[], move |logits, _| {
            let weights = logits.softmax(-1, Kind::Float).gather(-1, &picked, false);
            if renormalise {
                &weights / weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)
            } else {
                weights
            }
        });
        Routing { logits, choices, weights }
    }
}

impl Routing {
    /// Returns the statistics of the routing; `counts` are the numbers of tokens of the experts.
    pub fn statistics(&self, counts: &[i64]) -> RouterStatistics {
        let probabilities = recomputed(&self.logits, &[], |logits, _| {
            logits.softmax(-1, Kind::Float).sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
        });
        let squares = recomputed(&self.logits, &[], |logits, _| {
            logits.logsumexp([-1i64].as_slice(), false).square().sum(Kind::Float)
        });
        RouterStatistics { probabilities, squares, counts: counts.to_vec(), tokens: self.logits.size()[0] }
    }
}
