//! What follows attention in a layer: an MLP, or a layer of experts.

use super::decoder::rounded;
use super::design::{Activation, Design, FeedForwardDesign, FeedForwardLayers};
use super::experts::Experts;
use crate::models::family::Config;
use crate::nn::{ForwardPass, LayerInput, Linear, ModuleScope, by_tiles, ops};
use std::rc::Rc;
use tch::Tensor;

/// What follows attention in a layer.
pub enum FeedForward {
    /// One MLP for every token.
    Mlp(Rc<Mlp>),
    Experts(Experts),
}

/// The MLP of a layer.
pub struct Mlp {
    layers: Layers,
    down: Linear,
    activation: Activation,
    /// Where gates are bounded from below, in deviations from their mean; `None`: they are not.
    bound: Option<f64>,
}

enum Layers {
    Gated { gate: Linear, up: Linear },
    FusedGate(Linear),
    Plain(Linear),
}

impl FeedForward {
    /// Builds what layer `i` at `scope` has: experts if config.json says so, else an MLP.
    pub fn build(c: &Config, scope: &ModuleScope, design: &Design, i: usize) -> Self {
        match c.experts.as_ref().filter(|sizes| sizes.sparse[i]) {
            Some(sizes) => Self::Experts(Experts::build(c, sizes, &(scope / design.experts.module), design.experts)),
            None => {
                let width = c.intermediate_sizes[i];
                let mlp = Mlp::build(c, &(scope / design.feed_forward.module), (design.feed_forward, width));
                let down = mlp.down.with_sum(design.sums_results());
                Self::Mlp(Rc::new(Mlp { down, ..mlp }.with_sparsity(design.sparsity[i])))
            }
        }
    }

    /// Computes it for the tokens of `input`, in layer `i`: (T, D) -> (T, D).
    pub fn forward(&self, i: usize, input: LayerInput, pass: &mut ForwardPass) -> Tensor {
        match self {
            Self::Mlp(mlp) => {
                let mlp = mlp.clone();
                by_tiles(input, &[], pass.mlp_tile(), move |input, _| mlp.forward(input))
            }
            Self::Experts(experts) => experts.forward(i, input, pass),
        }
    }
}

impl FeedForward {
    /// Returns the layers of an MLP; none of experts, which compute rows of their own.
    pub fn linear_layers(&self) -> Vec<&Linear> {
        let Self::Mlp(mlp) = self else { return Vec::new() };
        match &mlp.layers {
            Layers::Gated { gate, up } => vec![gate, up, &mlp.down],
            Layers::FusedGate(first) | Layers::Plain(first) => vec![first, &mlp.down],
        }
    }
}

impl Mlp {
    /// Builds the MLP at `scope`, `f` numbers wide.
    fn build(c: &Config, scope: &ModuleScope, (design, f): (FeedForwardDesign, i64)) -> Self {
        let FeedForwardDesign { layers, bias, activation, .. } = design;
        let d = c.hidden_size;
        let (layers, down) = match layers {
            FeedForwardLayers::Gated => {
                let [gate, up] = ["gate_proj", "up_proj"].map(|name| (scope / name).linear(d, f, bias));
                (Layers::Gated { gate, up }, "down_proj")
            }
            FeedForwardLayers::FusedGate => {
                (Layers::FusedGate((scope / "gate_up_proj").linear(d, 2 * f, bias)), "down_proj")
            }
            FeedForwardLayers::Plain([up, down]) => (Layers::Plain((scope / up).linear(d, f, bias)), down),
        };
        Self { layers, down: (scope / down).linear(f, d, bias), activation, bound: None }
    }

    /// Lets about this share of the gates be 0.
    fn with_sparsity(self, share: f64) -> Self {
        let quantile = |share: f64| 2f64.sqrt() * Tensor::from(2.0 * share - 1.0).erfinv().double_value(&[]);
        Self { bound: (share > 0.0).then(|| quantile(share)), ..self }
    }

    /// Computes (T, D) -> (T, D).
    fn forward(&self, input: LayerInput) -> Tensor {
        let inner = match &self.layers {
            Layers::Gated { gate, up } => {
                let [gate, up] = Linear::forward_jointly([gate, up], input);
                let gate = self.bound.map_or_else(|| gate.shallow_clone(), |bound| beyond(&gate, bound));
                self.activation.gated(&gate, &up)
            }
            Layers::FusedGate(gate_up) => {
                let both = gate_up.forward(input).chunk(2, -1); // (T, F) each
                self.activation.gated(&both[0].contiguous(), &both[1].contiguous())
            }
            Layers::Plain(up) => self.activated(&up.forward(input)),
        };
        self.down.forward(inner)
    }

    fn activated(&self, x: &Tensor) -> LayerInput {
        match self.activation {
            Activation::Silu => LayerInput::kept(&x.silu()),
            Activation::GeluTanh => ops::gelu(x),
            Activation::Gelu => ops::gelu_exact(x),
        }
    }
}

/// Returns what of `gate` (T, F) lies beyond its mean plus `deviations` standard deviations of its row, and 0 for the rest: after
/// an activation with f(0) = 0, few numbers are not 0 (Gemma 3n).
fn beyond(gate: &Tensor, deviations: f64) -> Tensor {
    let mean = gate.mean_dim([-1i64].as_slice(), true, gate.kind()); // (T, 1)
    let deviation = gate.std_dim([-1i64].as_slice(), false, true);
    (gate - (mean + deviation * rounded(deviations, gate.kind()))).relu()
}
