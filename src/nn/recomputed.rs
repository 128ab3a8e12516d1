//! Results that are computed again in the backward, so that the graph keeps nothing but their inputs.

use super::autograd::differentiable;
use super::weight::cast;
use crate::native;
use tch::{Kind, Tensor};

/// The inputs of an operation that is recorded again in the backward, and which of them are trained.
struct Inputs {
    values: Vec<Tensor>,
    trained: Vec<bool>,
}

impl Inputs {
    fn of(tensors: &[&Tensor]) -> Self {
        let values = tensors.iter().map(|t| t.detach()).collect();
        Self { values, trained: tensors.iter().map(|t| t.requires_grad()).collect() }
    }

    /// Returns leaves with the same values.
    fn leaves(&self) -> Vec<Tensor> {
        let leaf = |(t, trained): (&Tensor, &bool)| t.detach().set_requires_grad(*trained);
        self.values.iter().zip(&self.trained).map(leaf).collect()
    }
}

/// Returns the gradients that a backward has left on `leaves`.
fn gradients(leaves: &[Tensor]) -> impl Iterator<Item = Option<Tensor>> {
    leaves.iter().map(|t| t.requires_grad().then(|| t.grad()))
}

/// Computes `compute(x, parameters)` without keeping intermediate results. The backward computes them again, with libtorch's
/// own graph, which is freed after it. `compute` must give the same result both times; dropout belongs outside of it.
pub fn recomputed(
    x: &Tensor,
    parameters: &[&Tensor],
    compute: impl Fn(&Tensor, &[Tensor]) -> Tensor + 'static,
) -> Tensor {
    let tensors: Vec<&Tensor> = std::iter::once(x).chain(parameters.iter().copied()).collect();
    let forward = || {
        let inputs = Inputs::of(&tensors);
        (compute(&inputs.values[0], &inputs.values[1..]), (compute, inputs))
    };
    differentiable(&tensors, forward, move |(compute, inputs), g| {
        let leaves = inputs.leaves();
        let y = tch::with_grad(|| compute(&leaves[0], &leaves[1..]));
        native::backward(&[&y], &[g]).expect("the graph was just recorded");
        gradients(&leaves).collect()
    })
}

/// Computes `x M1^T M2^T …` in the dtype of x, where `matrices` computes the matrices (each (out, in)) in float32 from
/// `parameters`: (T, in) -> (T, out).
///
/// The graph keeps x and the parameters alone. The backward computes the matrices again, which are freed after it, and the
/// products but the last: unlike [`recomputed`], which would repeat that one, too.
pub fn products(x: &Tensor, parameters: &[&Tensor], matrices: impl Fn(&[Tensor]) -> Vec<Tensor> + 'static) -> Tensor {
    let tensors: Vec<&Tensor> = std::iter::once(x).chain(parameters.iter().copied()).collect();
    let (needs_x, kind, of_parameters) = (x.requires_grad(), x.kind(), Inputs::of(parameters));
    let learns = native::grad_enabled() && of_parameters.trained.contains(&true);
    let forward = || {
        let found = matrices(&of_parameters.values);
        let y = found.iter().fold(x.shallow_clone(), |x, matrix| x.linear(&cast(matrix, kind), None::<&Tensor>));
        (y, (matrices, of_parameters, learns.then(|| x.detach())))
    };
    differentiable(&tensors, forward, move |(matrices, of_parameters, x), g| {
        let leaves = of_parameters.leaves();
        let found = tch::with_grad(|| matrices(&leaves));
        let narrow: Vec<Tensor> = found.iter().map(|matrix| cast(&matrix.detach(), kind)).collect();
        let inputs: Vec<Tensor> = x.iter().flat_map(|x| inputs_of(x, &narrow)).collect();
        let (mut g, mut of_matrices) = (g.shallow_clone(), Vec::new());
        for (i, matrix) in narrow.iter().enumerate().rev() {
            of_matrices.extend(inputs.get(i).map(|input| g.tr().matmul(input).to_kind(Kind::Float)));
            if i > 0 || needs_x {
                g = g.matmul(matrix);
            }
        }
        of_matrices.reverse();
        if !of_matrices.is_empty() {
            let pairs: (Vec<&Tensor>, Vec<&Tensor>) =
                found.iter().zip(&of_matrices).filter(|(m, _)| m.requires_grad()).unzip();
            native::backward(&pairs.0, &pairs.1).expect("the graph was just recorded");
        }
        let learnt = of_matrices.first().map(|_| gradients(&leaves));
        let of_parameters = learnt.map_or_else(|| leaves.iter().map(|_| None).collect(), Iterator::collect::<Vec<_>>);
        std::iter::once(needs_x.then_some(g)).chain(of_parameters).collect()
    })
}

/// Returns the input of each of these products, of which x (T, in) is the first.
fn inputs_of(x: &Tensor, matrices: &[Tensor]) -> Vec<Tensor> {
    let mut inputs = vec![x.shallow_clone()];
    for matrix in &matrices[..matrices.len() - 1] {
        inputs.push(inputs[inputs.len() - 1].linear(matrix, None::<&Tensor>));
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// Returns a result and the gradients that its square leaves on some leaves.
    fn learn(y: Tensor, leaves: &[Tensor]) -> Vec<Tensor> {
        (&y * &y).sum(Kind::Float).backward();
        let found = std::iter::once(y.detach()).chain(leaves.iter().map(|t| t.grad().copy())).collect();
        native::drop_gradients(leaves.iter());
        found
    }

    fn near(found: &[Tensor], expected: &[Tensor]) -> bool {
        found.iter().zip(expected).all(|(a, b)| a.allclose(b, 1e-5, 1e-5, false))
    }

    /// Result and gradients equal those of libtorch's own graph; a frozen parameter gets none.
    #[test]
    fn results_and_gradients_equal_the_composition() {
        tch::manual_seed(8);
        let (leaves, frozen) = ([leaf(&[5, 6]), leaf(&[4, 6])], leaf(&[3, 4]).detach());
        let [x, a] = &leaves;
        let compute = |x: &Tensor, p: &[Tensor]| x.matmul(&p[0].tr()).sigmoid().matmul(&p[1].tr());
        let expected = learn(compute(x, &[a.shallow_clone(), frozen.shallow_clone()]), &leaves);
        assert!(near(&learn(recomputed(x, &[a, &frozen], compute), &leaves), &expected));
        assert!(!frozen.grad().defined());
    }

    /// The products of an update `(B A) ∘ (D C)`, whole or as two factors, and every gradient equal those of libtorch's own
    /// graph.
    #[test]
    fn products_and_gradients_equal_the_composition() {
        tch::manual_seed(4);
        let leaves = [leaf(&[7, 6]), leaf(&[5, 2]), leaf(&[2, 6]), leaf(&[5, 2]), leaf(&[2, 6])];
        let [x, parameters @ ..] = &leaves;
        let whole = |p: &[Tensor]| vec![p[0].matmul(&p[1]) * p[2].matmul(&p[3])];
        let two = |p: &[Tensor]| {
            let a = p[1].unsqueeze(1) * p[3].unsqueeze(0);
            let b = p[0].unsqueeze(2) * p[2].unsqueeze(1);
            vec![a.reshape([-1, 6]), b.reshape([5, -1])]
        };
        let copies: Vec<Tensor> = parameters.iter().map(Tensor::shallow_clone).collect();
        let expected = learn(x.matmul(&whole(&copies)[0].tr()), &leaves);
        let borrowed: Vec<&Tensor> = parameters.iter().collect();
        assert!(near(&learn(products(x, &borrowed, whole), &leaves), &expected));
        assert!(near(&learn(products(x, &borrowed, two), &leaves), &expected));
    }

    /// A frozen parameter gets no gradient, and neither does an input that needs none.
    #[test]
    fn frozen_parameters_get_no_gradient() {
        let options = (Kind::Float, Device::Cpu);
        let (x, a, b) = (Tensor::ones([3, 4], options), Tensor::ones([2, 4], options), Tensor::ones([5, 2], options));
        let b = b.set_requires_grad(true);
        let y = products(&x, &[&a, &b], |p| vec![p[0].shallow_clone(), p[1].shallow_clone()]);
        y.sum(Kind::Float).backward();
        assert!(b.grad().allclose(&Tensor::full([5, 2], 12.0, options), 0.0, 0.0, false));
        assert!(!a.grad().defined());
    }
}
