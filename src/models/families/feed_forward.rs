//! What follows attention in a llama-like layer: a gated MLP, or a layer of experts.

use crate::models::family::{Config, ExpertSizes};
use crate::nn::{ExpertLayer, ForwardPass, GATED_MLP_NAMES, GatedMlp, LayerInput, Linear, ModuleScope, Router};
use tch::{Kind, Tensor};

/// The second half of a layer.
pub(super) enum FeedForward {
    /// One MLP for every token.
    Dense(GatedMlp),
    /// Experts, and perhaps an expert that computes every token.
    Experts { layer: ExpertLayer, shared: Option<SharedExpert> },
}

/// An MLP that computes every token beside the experts; its result is multiplied by the sigmoid of a gate.
pub(super) struct SharedExpert {
    mlp: GatedMlp,
    gate: Linear,
}

/// Where a family's checkpoints have the experts of a layer.
#[derive(Clone, Copy)]
pub(super) struct ExpertNames {
    /// The module within the layer.
    pub module: &'static str,
    /// The names of gate, up and down within an expert.
    pub layers: [&'static str; 3],
}

/// The names in most families.
pub(super) const USUAL_NAMES: ExpertNames = ExpertNames { module: "mlp", layers: GATED_MLP_NAMES };

impl FeedForward {
    /// Builds what layer `i` at `s` has: experts if config.json says so, else an MLP, whose layers have a bias if
    /// `mlp_bias` is true.
    pub fn build(c: &Config, s: &ModuleScope, i: usize, names: ExpertNames, mlp_bias: bool) -> Self {
        match c.experts.as_ref().filter(|sizes| sizes.sparse[i]) {
            Some(sizes) => Self::experts(c, sizes, &(s / names.module), names.layers),
            None => {
                let (width, inner) = (c.hidden_size, c.intermediate_size);
                Self::Dense(GatedMlp::build(&(s / "mlp"), GATED_MLP_NAMES, width, inner, mlp_bias))
            }
        }
    }

    fn experts(c: &Config, sizes: &ExpertSizes, s: &ModuleScope, names: [&str; 3]) -> Self {
        let d = c.hidden_size;
        let expert = |e: i64| GatedMlp::build(&(s / "experts" / e), names, d, sizes.width, false);
        let router = Router::build(&(s / "gate"), d, sizes.count, sizes.chosen, sizes.renormalise);
        let shared = sizes.shared_width.map(|width| SharedExpert {
            mlp: GatedMlp::build(&(s / "shared_expert"), names, d, width, false),
            gate: (s / "shared_expert_gate").linear(d, 1, false),
        });
        Self::Experts { layer: ExpertLayer::new(router, (0..sizes.count).map(expert).collect()), shared }
    }

    /// Computes it for the tokens of `input`, in layer `i`: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        match self {
            Self::Dense(mlp) => mlp.forward(input),
            Self::Experts { layer, shared: None } => layer.forward(i, input, pass),
            Self::Experts { layer, shared: Some(shared) } => {
                let beside = shared.forward(&input);
                layer.forward(i, input, pass) + beside
            }
        }
    }
}

impl SharedExpert {
    fn forward(&self, input: &LayerInput) -> Tensor {
        let opening = self.gate.forward(input.shallow_clone()).to_kind(Kind::Float).sigmoid(); // (T, 1)
        self.mlp.forward_scaled(input.shallow_clone(), &opening)
    }
}
