//! A layer of experts in the place of the MLP, and perhaps an expert that computes every token.

use super::design::ExpertNames;
use crate::models::family::{Config, ExpertSizes};
use crate::nn::{ExpertLayer, ForwardPass, GatedMlp, LayerInput, Linear, ModuleScope, Router, by_tiles};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The experts of one layer.
pub struct Experts {
    layer: ExpertLayer,
    shared: Option<Rc<SharedExpert>>,
}

/// An MLP that computes every token beside the experts; its result is multiplied by the sigmoid of a gate.
struct SharedExpert {
    mlp: GatedMlp,
    gate: Linear,
}

impl Experts {
    /// Builds the experts at `scope`, with these names of gate, up and down.
    pub fn build(c: &Config, sizes: &ExpertSizes, scope: &ModuleScope, names: ExpertNames) -> Self {
        let d = c.hidden_size;
        let mlp = |scope: &ModuleScope, width: i64| GatedMlp::build(scope, names.layers, d, width, false);
        let router = Router::build(&(scope / "gate"), d, sizes.count, sizes.chosen, sizes.renormalise);
        let of_width = |width| SharedExpert {
            mlp: mlp(&(scope / "shared_expert"), width),
            gate: (scope / "shared_expert_gate").linear(d, 1, false),
        };
        let shared = sizes.shared_width.map(|width| Rc::new(of_width(width)));
        let experts = (0..sizes.count).map(|e| mlp(&(scope / "experts" / e), sizes.width)).collect();
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
        let opening = self.gate.forward(input.shallow_clone()).to_kind(Kind::Float).sigmoid(); // (T, 1)
        self.mlp.forward_scaled(input.shallow_clone(), &opening)
    }
}
