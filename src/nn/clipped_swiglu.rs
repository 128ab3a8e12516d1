//! What lies between the layers of gpt-oss's experts: a gated activation with bounds (OpenAI 2025, arXiv 2508.10925).

use super::autograd::differentiable;
use super::layer_input::LayerInput;
use tch::{Kind, Tensor};

/// Settings of [`clipped_swiglu`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClippedSwiglu {
    /// Factor on the gate in the sigmoid; with 1.702 the gate's part is close to GELU.
    pub alpha: f64,
    /// Bound of the gate from above and of the magnitude of up.
    pub limit: f64,
}

impl ClippedSwiglu {
    /// Returns gate and up of interleaved outputs (T, 2 F), within their bounds and in float32, and the sigmoid that the gate
    /// is multiplied with: (T, F) each.
    fn parts(self, both: &Tensor) -> [Tensor; 3] {
        let pairs = both.view([both.size()[0], -1, 2]).to_kind(Kind::Float);
        let gate = pairs.select(-1, 0).clamp_max(self.limit);
        let sigmoid = (&gate * self.alpha).sigmoid();
        [gate, pairs.select(-1, 1).clamp(-self.limit, self.limit), sigmoid]
    }

    fn values(self, both: &Tensor) -> Tensor {
        let [gate, up, sigmoid] = self.parts(both);
        ((up + 1.0) * gate * sigmoid).to_kind(both.kind())
    }

    /// Returns the gradient of the interleaved outputs, given that of the result (T, F).
    fn backward(self, both: &Tensor, g: &Tensor) -> Tensor {
        let ([gate, up, sigmoid], g) = (self.parts(both), g.to_kind(Kind::Float));
        let slope: Tensor = &sigmoid * ((sigmoid.neg() + 1.0) * &gate * self.alpha + 1.0);
        let opened: Tensor = &g * (up + 1.0);
        let pairs = both.view([both.size()[0], -1, 2]);
        let (raw_gate, raw_up) = (pairs.select(-1, 0), pairs.select(-1, 1));
        let g_gate = (opened * slope).masked_fill(&raw_gate.gt(self.limit), 0.0);
        let g_up = (g * gate * sigmoid).masked_fill(&raw_up.abs().gt(self.limit), 0.0);
        Tensor::stack(&[g_gate, g_up], -1).view_as(both).to_kind(both.kind())
    }
}

/// Computes `(up + 1) * gate * sigmoid(alpha gate)` with the gate limited from above and up in magnitude, as a layer's input that
/// the backward recomputes: (T, 2 F), in which gate and up alternate -> (T, F). Keeps its input.
pub fn clipped_swiglu(both: &Tensor, settings: ClippedSwiglu) -> LayerInput {
    let forward = || (settings.values(both), both.detach());
    let y = differentiable(&[both], forward, move |both, g| vec![Some(settings.backward(both, g))]);
    LayerInput::recomputable(y, || {
        let kept = both.detach();
        move || settings.values(&kept)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Values and gradients equal those of libtorch's own graph, within the bounds and beyond.
    #[test]
    fn it_equals_its_composition() {
        tch::manual_seed(1);
        let both = (Tensor::randn([9, 14], (Kind::Float, Device::Cpu)) * 3.0).set_requires_grad(true);
        let beyond = both.abs().gt(2.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!(beyond > 0.2 && beyond < 0.8);
        let weights = Tensor::randn([9, 7], (Kind::Float, Device::Cpu));
        let learn = |y: Tensor| {
            (&y * &weights).sum(Kind::Float).backward();
            let g = both.grad().copy();
            crate::native::drop_gradients(std::iter::once(&both));
            [y.detach(), g]
        };
        let gate = both.slice(1, 0, None, 2).clamp_max(2.0);
        let plain = (both.slice(1, 1, None, 2).clamp(-2.0, 2.0) + 1.0) * &gate * (&gate * 1.702).sigmoid();
        let expected = learn(plain);
        let made = clipped_swiglu(&both, ClippedSwiglu { alpha: 1.702, limit: 2.0 });
        assert!((made.again())().equal(&made.x));
        let found = learn(made.x);
        assert!(found.iter().zip(&expected).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false)), "{found:?} {expected:?}");
    }
}
