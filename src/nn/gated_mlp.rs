//! The gated MLP of llama-like layers (Shazeer 2020, arXiv 2002.05202): `down(silu(gate(x)) * up(x))`, and that of gpt-oss.

use super::builder::ModuleScope;
use super::clipped_swiglu::{ClippedSwiglu, clipped_swiglu};
use super::layer_input::LayerInput;
use super::linear::Linear;
use super::ops;
use super::scale::scale_rows;
use super::weight::Weight;
use tch::Tensor;

/// A gated MLP: a layer's own, or one expert of it.
pub struct GatedMlp {
    first: FirstLayers,
    down: Linear,
}

enum FirstLayers {
    Separate { gate: Linear, up: Linear },
    Interleaved { both: Linear, bounds: ClippedSwiglu },
}

/// The layers of a gated MLP by name, and what lies between them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GatedMlpForm {
    /// Gate, up and down: `down(silu(gate(x)) * up(x))`.
    Separate([&'static str; 3]),
    /// One layer whose outputs are gate and up in turn, and down. What lies between them is
    /// [`clipped_swiglu`].
    Interleaved {
        /// The two layers.
        names: [&'static str; 2],
        /// The settings of what lies between them.
        bounds: ClippedSwiglu,
    },
}

/// The names of gate, up and down in most checkpoints.
pub const GATED_MLP_NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

impl GatedMlp {
    /// Builds the MLP below `scope`, from `width` to `inner` numbers and back; with `bias` each layer has one.
    pub fn build(scope: &ModuleScope, form: GatedMlpForm, width: i64, inner: i64, bias: bool) -> Self {
        let (first, down) = match form {
            GatedMlpForm::Separate([gate, up, down]) => {
                let [gate, up] = [gate, up].map(|name| (scope / name).linear(width, inner, bias));
                (FirstLayers::Separate { gate, up }, down)
            }
            GatedMlpForm::Interleaved { names: [both, down], bounds } => {
                let both = (scope / both).linear(width, 2 * inner, bias);
                (FirstLayers::Interleaved { both, bounds }, down)
            }
        };
        Self { first, down: (scope / down).linear(inner, width, bias) }
    }

    /// Computes the MLP: (T, D) -> (T, D).
    pub fn forward(&self, input: impl Into<LayerInput>) -> Tensor {
        self.down.forward(self.activated(input.into()))
    }

    /// Computes the same, each row multiplied by its number in `factors` (T, 1), float32.
    ///
    /// The factors are applied before the last product, where their gradient needs only the activations, which the
    /// backward recomputes anyway: applied behind it, they would need its result, which would have to be kept.
    pub fn forward_scaled(&self, input: LayerInput, factors: &Tensor) -> Tensor {
        let activated = self.activated(input);
        if self.down.adds_bias() {
            let y = self.down.forward(activated);
            return (&y * factors).to_kind(y.kind());
        }
        self.down.forward(scale_rows(activated, factors))
    }

    /// Returns the frozen weights of gate, up and down; `None` unless these are layers of their own, without biases, to which no adapter is
    /// attached.
    pub(super) fn unadapted_weights(&self) -> Option<[&Weight; 3]> {
        let FirstLayers::Separate { gate, up } = &self.first else { return None };
        Some([gate.unadapted_weight()?, up.unadapted_weight()?, self.down.unadapted_weight()?])
    }

    fn activated(&self, input: LayerInput) -> LayerInput {
        match &self.first {
            FirstLayers::Separate { gate, up } => {
                let [gate, up] = Linear::forward_jointly([gate, up], input);
                ops::swiglu(&gate, &up)
            }
            FirstLayers::Interleaved { both, bounds } => clipped_swiglu(&both.forward(input), *bounds),
        }
    }
}
