//! A layer of experts: router, dispatch and the experts' products.

use super::dispatch::Dispatch;
use super::grouped::ExpertStacks;
use super::router::Router;
use crate::nn::gated_mlp::GatedMlp;
use crate::nn::layer_input::LayerInput;
use crate::nn::pass::ForwardPass;
use crate::nn::tiled::by_tiles;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A router and its experts, in the place of a layer's MLP.
pub struct ExpertLayer {
    router: Router,
    experts: Rc<[GatedMlp]>,
}

impl ExpertLayer {
    /// Returns the layer of these experts, of which the router chooses some for each token.
    pub fn new(router: Router, experts: Vec<GatedMlp>) -> Self {
        Self { router, experts: experts.into() }
    }

    /// Computes layer `layer` of the model: `sum_j w_j expert_j(x)` over the chosen experts of each token, (T, D) ->
    /// (T, D). If the pass asks for it, it gets the statistics of the routing.
    pub fn forward(&self, layer: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        if input.x.size()[0] == 0 {
            return input.x.zeros_like(); // a decoding step in which no sequence goes on
        }
        let routing = self.router.route(&input, pass.watches_routing());
        pass.record_routing(layer, || routing.statistics(self.experts.len() as i64));
        if let Some(stacks) = ExpertStacks::of(&self.experts, &input.x) {
            return by_tiles(input, &[&routing.weights, &routing.choices], pass.mlp_tile(), move |input, routing| {
                stacks.sum_of_experts(&input.x, &routing[0], &routing[1])
            });
        }
        // Waits for the device, because the host launches one product for each expert.
        let choices = routing.choices.to_device(Device::Cpu);
        let experts = self.experts.clone();
        by_tiles(input, &[&routing.weights, &choices], pass.mlp_tile(), move |input, routing| {
            sum_of_experts(&experts, input, &routing[0], &routing[1])
        })
    }
}

/// Computes `sum_j w_j expert_j(x)` over the chosen experts of each token of `input` (T, D): `weights` and
/// `choices` are (T, k), the choices on the CPU.
fn sum_of_experts(experts: &[GatedMlp], input: LayerInput, weights: &Tensor, choices: &Tensor) -> Tensor {
    let dispatch = Dispatch::new(choices, experts.len(), input.x.device());
    let rows = dispatch.split(&dispatch.gather(&input.x));
    let weights = dispatch.split(&dispatch.sort_pairs(weights));
    let tokens = dispatch.tokens_of_groups();
    let outputs = dispatch.groups().iter().zip(rows).zip(weights).zip(tokens);
    let outputs: Vec<Tensor> =
        outputs.map(|((((e, _), x), w), tokens)| experts[*e].forward_scaled(input.selected(x, tokens), &w)).collect();
    dispatch.sum(&Tensor::cat(&outputs, 0))
}
