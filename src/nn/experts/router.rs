//! The router of a layer of experts: which experts compute a token, and with which weights.

use crate::nn::autograd::differentiable_many;
use crate::nn::layer_input::LayerInput;
use crate::nn::linear::Linear;
use tch::{Kind, Tensor};

/// A linear layer whose outputs are the logits of the experts. It computes in float32, in whatever format the model does:
/// a rounded logit may choose another expert.
pub struct Router {
    gate: Linear,
    rule: RoutingRule,
}

/// How experts are chosen by their probabilities, and which weights they get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingRule {
    /// k, the number of experts of a token: the most probable ones.
    pub chosen: i64,
    /// The groups of neighbouring experts, and from how many of them a token's experts are taken: those with the most probable
    /// expert (DeepSeek-AI 2024, arXiv 2405.04434, section 2.2.2). `None`: from all experts.
    pub groups: Option<(i64, i64)>,
    /// The weights of a token's experts are divided by their sum: they are the softmax of their logits alone.
    pub renormalise: bool,
    /// Factor on the weights.
    pub scale: f64,
}

impl RoutingRule {
    /// Returns the probabilities (T, E) with 0 for the experts that a token's groups leave out.
    fn candidates(&self, probabilities: &Tensor) -> Tensor {
        let Some((count, chosen)) = self.groups else { return probabilities.shallow_clone() };
        let size = probabilities.size();
        let by_group = probabilities.view([size[0], count, -1]);
        let (_, best) = by_group.amax([-1i64].as_slice(), false).topk(chosen, -1, true, true);
        let left_out = Tensor::ones([size[0], count], (Kind::Bool, probabilities.device())).scatter_value(-1, &best, 0);
        by_group.masked_fill(&left_out.unsqueeze(-1), 0.0).view(size.as_slice())
    }
}

/// The experts of each token of a row, and their weights.
pub(super) struct Routing {
    /// (T, k) numbers of the experts, the most probable first.
    pub choices: Tensor,
    /// (T, k) float32
    pub weights: Tensor,
    /// The sums of the probabilities (E) and of the squares, if they were asked for: see [`RouterStatistics`].
    sums: Option<[Tensor; 2]>,
}

/// What the backward of a routing needs.
struct SavedRouting {
    /// (T, E) the softmax of the logits.
    probabilities: Tensor,
    choices: Tensor,
    /// Factor on the weights.
    scale: f64,
    /// The weights (T, k) without that factor, and the sums (T, 1) that they were divided by, if they were.
    renormalised: Option<[Tensor; 2]>,
    /// (T) logarithms of the sums of the exponentials, if the sums were asked for.
    log_sums: Option<Tensor>,
}

/// What terms of the loss need of the routing of one layer's tokens.
#[derive(Debug)]
pub struct RouterStatistics {
    /// (E) the probability of each expert, summed over the tokens.
    pub probabilities: Tensor,
    /// The square of the logarithm of the sum of the exponentials of a token's logits, summed over the tokens: a scalar.
    pub squares: Tensor,
    /// (E) how many tokens each expert was chosen for, float64.
    pub counts: Tensor,
    /// The number of tokens.
    pub tokens: i64,
    /// The number of choices of all tokens.
    pub pairs: i64,
}

impl RouterStatistics {
    /// Returns the same statistics cut off from the graph, as new leaves that collect a gradient.
    pub fn as_leaves(&self) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        let (probabilities, squares) = (leaf(&self.probabilities), leaf(&self.squares));
        Self { probabilities, squares, counts: self.counts.shallow_clone(), tokens: self.tokens, pairs: self.pairs }
    }
}

impl Router {
    /// Returns the router of this layer, whose `weight` is (experts, width).
    pub fn new(gate: Linear, rule: RoutingRule) -> Self {
        Self { gate, rule }
    }

    /// Routes the tokens of `input` (T, D). With `watched`, their statistics can be asked for.
    pub(super) fn route(&self, input: &LayerInput, watched: bool) -> Routing {
        let logits = self.gate.forward(input.map_rows(|x| x.to_kind(Kind::Float))); // (T, E)
        let mut choices = None;
        let forward = || {
            let probabilities = logits.softmax(-1, Kind::Float);
            let (picked, chosen) = self.rule.candidates(&probabilities).topk(self.rule.chosen, -1, true, true);
            let total = self.rule.renormalise.then(|| sum_along(&picked));
            let weights = total.as_ref().map_or_else(|| picked.shallow_clone(), |total| &picked / total);
            let renormalised = total.map(|total| [weights.detach(), total]);
            let scale = self.rule.scale;
            let weights = if scale == 1.0 { weights } else { weights * scale };
            let log_sums = watched.then(|| logits.logsumexp([-1i64].as_slice(), false));
            let mut results = vec![weights];
            if let Some(log_sums) = &log_sums {
                let of_experts = probabilities.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                results.extend([of_experts, log_sums.square().sum(Kind::Float)]);
            }
            choices = Some(chosen.shallow_clone());
            (results, SavedRouting { probabilities, choices: chosen, scale, renormalised, log_sums })
        };
        let mut results = differentiable_many(&[&logits], forward, |saved, grads| vec![Some(saved.backward(grads))]);
        let sums = watched.then(|| results.split_off(1).try_into().expect("two sums"));
        Routing { choices: choices.expect("routed"), weights: results.remove(0), sums }
    }
}

impl SavedRouting {
    /// Returns the gradient of the logits (T, E), given those of the weights and, if they were asked for, of the sums.
    fn backward(&self, grads: &[Option<Tensor>]) -> Tensor {
        let p = &self.probabilities;
        let mut g_p = p.zeros_like();
        if let Some(g) = &grads[0] {
            let g = &(g * self.scale);
            let g = match &self.renormalised {
                Some([weights, total]) => (g - sum_along(&(g * weights))) / total,
                None => g.shallow_clone(),
            };
            let _ = g_p.scatter_(-1, &self.choices, &g);
        }
        if let Some(g) = grads.get(1).and_then(Option::as_ref) {
            g_p += g;
        }
        let mut g_logits = &g_p - sum_along(&(&g_p * p));
        if let (Some(g), Some(log_sums)) = (grads.get(2).and_then(Option::as_ref), &self.log_sums) {
            g_logits += (log_sums * g * 2.0).unsqueeze(-1);
        }
        g_logits * p
    }
}

/// Returns the sums of rows: (T, n) -> (T, 1).
fn sum_along(t: &Tensor) -> Tensor {
    t.sum_dim_intlist([-1i64].as_slice(), true, t.kind())
}

impl Routing {
    /// Returns the statistics of the routing among `experts` experts.
    ///
    /// # Panics
    /// If the routing was not watched.
    pub fn statistics(&self, experts: i64) -> RouterStatistics {
        let all = Tensor::arange(experts, (Kind::Int64, self.choices.device()));
        let counts =
            self.choices.reshape([-1, 1]).eq_tensor(&all).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        let [probabilities, squares] =
            self.sums.as_ref().expect("a watched routing").each_ref().map(Tensor::shallow_clone);
        let (tokens, pairs) = (self.choices.size()[0], self.choices.numel() as i64);
        RouterStatistics { probabilities, squares, counts, tokens, pairs }
    }
}
