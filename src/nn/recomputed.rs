//! Results that are computed again in the backward, so that the graph keeps nothing but their inputs.

use super::autograd::differentiable;
use crate::native;
use tch::Tensor;

/// Computes `compute(x, parameters)` without keeping intermediate results. The backward computes them again, with libtorch's
/// own graph, which is freed after it. `compute` must give the same result both times; dropout belongs outside of it.
pub fn recomputed(
    x: &Tensor,
    parameters: &[&Tensor],
    compute: impl Fn(&Tensor, &[Tensor]) -> Tensor + 'static,
) -> Tensor {
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(parameters.iter().copied()).collect();
    let trained: Vec<bool> = inputs.iter().map(|t| t.requires_grad()).collect();
    let forward = || {
        let values: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
        (compute(&values[0], &values[1..]), (compute, values))
    };
    differentiable(&inputs, forward, move |(compute, values), g| {
        let leaves: Vec<Tensor> =
            values.iter().zip(&trained).map(|(t, trained)| t.detach().set_requires_grad(*trained)).collect();
        let y = tch::with_grad(|| compute(&leaves[0], &leaves[1..]));
        native::backward(&[&y], &[g]).expect("the graph was just recorded");
        leaves.iter().map(|t| t.requires_grad().then(|| t.grad())).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Result and gradients equal those of libtorch's own graph; a frozen parameter gets none.
    #[test]
    fn results_and_gradients_equal_the_composition() {
        tch::manual_seed(8);
        let leaf = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (x, a, frozen) = (leaf(&[5, 6]), leaf(&[4, 6]), leaf(&[3, 4]).detach());
        let compute = |x: &Tensor, p: &[Tensor]| x.matmul(&p[0].tr()).sigmoid().matmul(&p[1].tr());
        let learn = |y: Tensor| {
            (&y * &y).sum(Kind::Float).backward();
            let found = [y.detach(), x.grad().copy(), a.grad().copy()];
            native::drop_gradients([&x, &a].into_iter());
            found
        };
        let expected = learn(compute(&x, &[a.shallow_clone(), frozen.shallow_clone()]));
        let found = learn(recomputed(&x, &[&a, &frozen], compute));
        assert!(found.iter().zip(&expected).all(|(a, b)| a.allclose(b, 1e-6, 1e-6, false)));
        assert!(!frozen.grad().defined());
    }
}
