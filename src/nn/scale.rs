//! Scales the columns or the rows of a matrix by factors.

use super::autograd::differentiable;
use super::layer_input::LayerInput;
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Computes `y ∘ scale` in float32, rounded once to the dtype of y: (…, out), (out) float32 -> (…, out). A factor near 1
/// would lose most of its digits in bfloat16. Keeps y and the factors for the backward.
pub fn scale_columns(y: &Tensor, scale: &Tensor) -> Tensor {
    let (needs_y, needs_scale, width) = (y.requires_grad(), scale.requires_grad(), scale.size()[0]);
    let forward = || {
        // The product of a bfloat16 and a float32 tensor is computed in float32.
        let scaled = (y * scale).to_kind(y.kind());
        (scaled, (needs_scale.then(|| y.detach()), scale.detach(), y.kind()))
    };
    differentiable(&[y, scale], forward, move |(y, scale, kind), g| {
        let g_y = needs_y.then(|| (g * scale).to_kind(*kind));
        let rows = |t: &Tensor| t.reshape([-1, width]).to_kind(Kind::Float);
        let g_scale = y.as_ref().map(|y| (rows(g) * rows(y)).sum_dim_intlist([0i64].as_slice(), false, Kind::Float));
        vec![g_y, g_scale]
    })
}

/// Computes `factors ∘ x` in float32, rounded once to the dtype of x, as a layer's input: (n, F), (n, 1) float32 -> (n, F).
/// Keeps the factors; x and the result are recomputed in the backward as `input` is, once: the layer that reads the result
/// computes x first, and leaves it for the gradient of the factors.
pub fn scale_rows(input: LayerInput, factors: &Tensor) -> LayerInput {
    let (kind, again) = (input.x.kind(), input.again());
    let (needs_x, needs_factors) = (input.x.requires_grad(), factors.requires_grad());
    let left: Rc<RefCell<Option<Tensor>>> = Rc::default();
    let forward = || ((&input.x * factors).to_kind(kind), (again.clone(), left.clone(), factors.detach()));
    let scaled = differentiable(&[&input.x, factors], forward, move |(again, left, factors), g| {
        let x = needs_factors.then(|| left.take().unwrap_or_else(|| again()));
        let along = |x: Tensor| g.to_kind(Kind::Float) * x.to_kind(Kind::Float);
        vec![
            needs_x.then(|| (g * factors).to_kind(kind)),
            x.map(|x| along(x).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)),
        ]
    });
    LayerInput::recomputable(scaled, || {
        let factors = factors.detach();
        move || {
            let x = again();
            let scaled = (&x * &factors).to_kind(kind);
            left.replace(needs_factors.then_some(x));
            scaled
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Values, what is recomputed and gradients equal those of libtorch's own graph.
    #[test]
    fn scaled_rows_equal_the_composition() {
        tch::manual_seed(9);
        let leaf = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (x, factors, weight) = (leaf(&[7, 5]), leaf(&[7, 1]), leaf(&[7, 5]).detach());
        let learn = |out: &Tensor| {
            (out * &weight).sum(Kind::Float).backward();
            let found = [out.detach(), x.grad().copy(), factors.grad().copy()];
            crate::native::drop_gradients([&x, &factors].into_iter());
            found
        };
        let expected = learn(&(x.tanh() * &factors));
        let kept = x.detach();
        let scaled = scale_rows(LayerInput::recomputable(x.tanh(), || move || kept.tanh()), &factors);
        assert!((scaled.again())().equal(&scaled.x));
        let found = learn(&scaled.x);
        assert!(found.iter().zip(&expected).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false)));
    }

    /// Values and gradients equal those of libtorch's own graph, also with a leading dimension.
    #[test]
    fn scaled_columns_equal_the_composition() {
        tch::manual_seed(8);
        let leaf = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        for shape in [&[7, 5][..], &[2, 3, 5]] {
            let (y, scale, weight) = (leaf(shape), leaf(&[5]), Tensor::randn(shape, (Kind::Float, Device::Cpu)));
            let learn = |out: Tensor| {
                (&out * &weight).sum(Kind::Float).backward();
                let found = [out.detach(), y.grad().copy(), scale.grad().copy()];
                crate::native::drop_gradients([&y, &scale].into_iter());
                found
            };
            let expected = learn(&y * &scale);
            let found = learn(scale_columns(&y, &scale));
            assert!(found.iter().zip(&expected).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false)));
        }
    }

    /// In bfloat16 a factor of 1.002, whose nearest bfloat16 number is 1, still has an effect.
    #[test]
    fn factors_are_not_rounded_to_the_dtype_of_the_product() {
        let y = Tensor::arange(1000, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16).view([-1, 1]);
        let scaled = scale_columns(&y, &Tensor::full([1], 1.002, (Kind::Float, Device::Cpu)));
        let expected = (y.to_kind(Kind::Float) * 1.002f32 as f64).to_kind(Kind::BFloat16);
        assert!(scaled.kind() == Kind::BFloat16 && scaled.equal(&expected) && !scaled.equal(&y));
    }
}
