//! The gated MLP of llama-like layers (Shazeer 2020, arXiv 2002.05202): `down(silu(gate(x)) * up(x))`.

use super::builder::ModuleScope;
use super::layer_input::LayerInput;
use super::linear::Linear;
use super::ops;
use super::scale::scale_rows;
use tch::Tensor;

/// A gated MLP: a layer's own, or one expert of it.
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The names of gate, up and down in most checkpoints.
pub const GATED_MLP_NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

impl GatedMlp {
    /// Builds the MLP below `scope`, from `width` to `inner` numbers and back. `names` are those of gate, up and down;
    /// with `bias` each has one.
    pub fn build(scope: &ModuleScope, names: [&str; 3], width: i64, inner: i64, bias: bool) -> Self {
        let [gate, up, down] = names.map(|name| scope / name);
        Self {
            gate: gate.linear(width, inner, bias),
            up: up.linear(width, inner, bias),
            down: down.linear(inner, width, bias),
        }
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

    fn activated(&self, input: LayerInput) -> LayerInput {
        let [gate, up] = Linear::forward_jointly([&self.gate, &self.up], input);
        ops::swiglu(&gate, &up)
    }
}
