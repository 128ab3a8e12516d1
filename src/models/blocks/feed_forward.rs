//! The MLP of a layer.

use super::design::{Activation, FeedForwardDesign, FeedForwardLayers};
use crate::models::family::Config;
use crate::nn::{LayerInput, Linear, ModuleScope, ops};
use tch::Tensor;

/// The MLP of a layer.
pub struct FeedForward {
    layers: Layers,
    down: Linear,
    activation: Activation,
}

enum Layers {
    Gated { gate: Linear, up: Linear },
    FusedGate(Linear),
    Plain(Linear),
}

impl FeedForward {
    /// Builds the MLP at `scope`.
    pub fn build(c: &Config, scope: &ModuleScope, design: FeedForwardDesign) -> Self {
        let FeedForwardDesign { layers, bias, activation } = design;
        let (d, f) = (c.hidden_size, c.intermediate_size);
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
        Self { layers, down: (scope / down).linear(f, d, bias), activation }
    }

    /// Computes (T, D) -> (T, D).
    pub fn forward(&self, input: LayerInput) -> Tensor {
        let inner = match &self.layers {
            Layers::Gated { gate, up } => {
                let [gate, up] = Linear::forward_jointly([gate, up], input);
                self.gated(&gate, &up)
            }
            Layers::FusedGate(gate_up) => {
                let both = gate_up.forward(input).chunk(2, -1); // (T, F) each
                self.gated(&both[0].contiguous(), &both[1].contiguous())
            }
            Layers::Plain(up) => self.activated(&up.forward(input)),
        };
        self.down.forward(inner)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> LayerInput {
        match self.activation {
            Activation::Silu => ops::swiglu(gate, up),
            Activation::GeluTanh => ops::geglu(gate, up, false),
            Activation::Gelu => ops::geglu(gate, up, true),
        }
    }

    fn activated(&self, x: &Tensor) -> LayerInput {
        match self.activation {
            Activation::Silu => LayerInput::kept(&x.silu()),
            Activation::GeluTanh => ops::gelu(x),
            Activation::Gelu => ops::gelu_exact(x),
        }
    }
}
