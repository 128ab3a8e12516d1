//! Products with a matrix that is computed from trained parameters, such as the update of an adapter that is no product
//! of two thin factors.

use super::autograd::differentiable;
use super::weight::cast;
use crate::native;
use tch::{Kind, Tensor};

/// Computes `x M^T` in the dtype of x, where `matrix` computes M (out, in) in float32 from `parameters`: (T, in) ->
/// (T, out).
///
/// The graph keeps x and the parameters alone. M, which is as large as the layer's weight, is computed again in the
/// backward and freed after it.
pub fn product(x: &Tensor, parameters: &[&Tensor], matrix: impl Fn(&[Tensor]) -> Tensor + 'static) -> Tensor {
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(parameters.iter().copied()).collect();
    let values: Vec<Tensor> = parameters.iter().map(|t| t.detach()).collect();
    let trained: Vec<bool> = parameters.iter().map(|t| t.requires_grad()).collect();
    let (needs_x, learns) = (x.requires_grad(), trained.contains(&true) && native::grad_enabled());
    let forward = || {
        let y = x.linear(&cast(&matrix(&values), x.kind()), None::<&Tensor>);
        (y, (matrix, values, learns.then(|| x.detach())))
    };
    differentiable(&inputs, forward, move |(matrix, values, x), g| {
        let leaves: Vec<Tensor> =
            values.iter().zip(&trained).map(|(t, trained)| t.detach().set_requires_grad(*trained)).collect();
        let m = tch::with_grad(|| matrix(&leaves)); // (out, in)
        let mut gradients = vec![needs_x.then(|| g.matmul(&cast(&m.detach(), g.kind())))];
        let Some(x) = x else { return gradients.into_iter().chain(leaves.iter().map(|_| None)).collect() };
        let g_m = g.tr().matmul(x).to_kind(Kind::Float);
        let sum = tch::with_grad(|| (&m * g_m).sum(Kind::Float));
        let wanted: Vec<&Tensor> = leaves.iter().filter(|t| t.requires_grad()).collect();
        let mut found = Tensor::run_backward(&[&sum], &wanted, false, false).into_iter();
        gradients.extend(trained.iter().map(|trained| if *trained { found.next() } else { None }));
        gradients
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// The products of an update `(B A) ∘ (D C)` and every gradient equal those of libtorch's own graph.
    #[test]
    fn products_and_gradients_equal_the_composition() {
        tch::manual_seed(4);
        let leaf = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let leaves = [leaf([7, 6]), leaf([5, 2]), leaf([2, 6]), leaf([5, 3]), leaf([3, 6])];
        let matrix = |p: &[Tensor]| p[0].matmul(&p[1]) * p[2].matmul(&p[3]);
        let [x, factors @ ..] = &leaves;
        let learn = |y: Tensor| {
            (&y * &y).sum(Kind::Float).backward();
            let gradients: Vec<Tensor> = leaves.iter().map(|t| t.grad().copy()).collect();
            native::drop_gradients(leaves.iter());
            (y.detach(), gradients)
        };
        let copies: Vec<Tensor> = factors.iter().map(Tensor::shallow_clone).collect();
        let (expected, expected_gradients) = learn(x.matmul(&matrix(&copies).tr()));
        let (found, gradients) = learn(product(x, &factors.iter().collect::<Vec<_>>(), matrix));
        assert!(found.allclose(&expected, 1e-6, 1e-6, false));
        assert!(gradients.iter().zip(&expected_gradients).all(|(a, b)| a.allclose(b, 1e-5, 1e-5, false)));
    }

    /// A frozen parameter gets no gradient, and neither does an input that needs none.
    #[test]
    fn frozen_parameters_get_no_gradient() {
        let options = (Kind::Float, Device::Cpu);
        let (x, a, b) = (Tensor::ones([3, 4], options), Tensor::ones([2, 4], options), Tensor::ones([5, 2], options));
        let b = b.set_requires_grad(true);
        let y = product(&x, &[&a, &b], |p| p[1].matmul(&p[0]));
        y.sum(Kind::Float).backward();
        assert!(b.grad().allclose(&Tensor::full([5, 2], 12.0, options), 0.0, 0.0, false));
        assert!(!a.grad().defined());
    }
}
