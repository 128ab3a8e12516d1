//! A layer of experts: router, dispatch and the experts' products.

use super::dispatch::Dispatch;
use super::router::Router;
use crate::nn::gated_mlp::GatedMlp;
use crate::nn::layer_input::LayerInput;
use crate::nn::pass::ForwardPass;
use tch::Tensor;

/// A router and its experts, in the place of a layer's MLP.
pub struct ExpertLayer {
    router: Router,
    experts: Vec<GatedMlp>,
}

impl ExpertLayer {
    /// Returns the layer of these experts, of which the router chooses some for each token.
    pub fn new(router: Router, experts: Vec<GatedMlp>) -> Self {
        Self { router, experts }
    }

    /// Computes layer `layer` of the model: `sum_j w_j expert_j(x)` over the chosen experts of each token, (T, D) ->
    /// (T, D). If the pass asks for it, it gets the statistics of the routing.
    pub fn forward(&self, layer: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        if input.x.size()[0] == 0 {
            return input.x.zeros_like(); // a decoding step in which no sequence goes on
        }
        let routing = self.router.route(&input, pass.watches_routing());
        let dispatch = Dispatch::new(&routing.choices, self.experts.len());
        pass.record_routing(layer, || routing.statistics(dispatch.counts()));
        let rows = dispatch.split(&dispatch.gather(&input.x));
        let weights = dispatch.split(&dispatch.sort_pairs(&routing.weights));
        let tokens = dispatch.tokens_of_groups();
        let outputs = dispatch.groups().iter().zip(rows).zip(weights).zip(tokens);
        let outputs: Vec<Tensor> = outputs
            .map(|((((e, _), x), w), tokens)| self.experts[*e].forward_scaled(input.selected(x, tokens), &w))
            .collect();
        dispatch.sum(&Tensor::cat(&outputs, 0))
    }
}
