//! A layer of experts in the place of the MLP, and perhaps an expert that computes every token.

use super::design::ExpertDesign;
use crate::models::family::{Config, ExpertSizes};
use crate::nn::{ExpertLayer, ForwardPass, GatedMlp, LayerInput, Linear, ModuleScope, Router, RoutingRule, by_tiles};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The experts of one layer.
pub struct Experts {
    layer: ExpertLayer,
    shared: Option<Rc<SharedExpert>>,
}

/// An MLP that computes every token beside the experts; its result is multiplied by the sigmoid of a gate if there is one.
struct SharedExpert {
    mlp: GatedMlp,
    gate: Option<Linear>,
}

impl Experts {
    /// Builds the experts at `scope`.
    pub fn build(c: &Config, sizes: &ExpertSizes, scope: &ModuleScope, design: ExpertDesign) -> Self {
        let d = c.hidden_size;
        let mlp = |scope: &ModuleScope, width: i64, bias: bool| GatedMlp::build(scope, design.mlp, d, width, bias);
        let gate = (scope / design.router).router(d, sizes.count, design.bias);
        let ExpertSizes { chosen, renormalise, groups, scale, .. } = *sizes;
        let router = Router::new(gate, RoutingRule { chosen, groups, renormalise, scale });
        let of_width = |width| SharedExpert {
            mlp: mlp(&(scope / design.shared.module), width, c.mlp_bias),
            gate: design.shared.gate.map(|name| (scope / name).linear(d, 1, false)),
        };
        let shared = sizes.shared_width.map(|width| Rc::new(of_width(width)));
        let experts = (0..sizes.count).map(|e| mlp(&(scope / "experts" / e), sizes.width, design.bias)).collect();
        Self { layer: ExpertLayer::new(router, experts), shared }
    }

    /// Computes layer `i`'s experts: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        let Some(shared) = &self.shared else { return self.layer.forward(i, input, pass) };
        let shared = shared.clone();
        let beside = by_tiles(input.shallow_clone(), &[], pass.mlp_tile(), move |input, _| shared.forward(&input));
        self.layer.forward(i, input, pass) + beside
    }
}

impl SharedExpert {
    fn forward(&self, input: &LayerInput) -> Tensor {
        let Some(gate) = &self.gate else { return self.mlp.forward(input.shallow_clone()) };
        let opening = gate.forward(input.shallow_clone()).to_kind(Kind::Float).sigmoid(); // (T, 1)
        self.mlp.forward_scaled(input.shallow_clone(), &opening)
    }
}
