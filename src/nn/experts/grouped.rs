//! The products of all experts of a layer as one operation each, on a GPU that has such products.
//!
//! An expert's tokens follow each other in the sorted rows, and the weights of all experts lie side by side in memory, so
//! libtorch's grouped product computes every group of rows with its own matrix. The groups are found on the device: the host neither
//! waits for the router's choices nor launches anything for a single expert.

use super::dispatch::Dispatch;
use crate::machine;
use crate::nn::autograd::differentiable_many;
use crate::nn::gated_mlp::GatedMlp;
use crate::nn::joint_linear::beside_each_other;
use crate::nn::ops;
use crate::nn::scale::scale_rows;
use crate::nn::weight::Weight;
use tch::{Device, Kind, Tensor};

/// The frozen weights of a layer's experts, those of all experts as one tensor: E experts of F inner numbers.
pub(super) struct ExpertStacks {
    /// (E, 2 F, D) gate and up of each expert.
    first: Tensor,
    /// (E, D, F)
    down: Tensor,
}

impl ExpertStacks {
    /// Returns the stacks for inputs like `x` (T, D); `None` unless its device has grouped products and the experts are frozen. Whether
    /// they are used must not depend on which adapter is active, so an expert with any adapter is computed by itself.
    pub fn of(experts: &[GatedMlp], x: &Tensor) -> Option<Self> {
        if has_grouped_products(x.device(), x.kind()) { Self::stack(experts, x.kind()) } else { None }
    }

    /// Moves the weights of the experts side by side, if they are frozen numbers of dtype `kind` without adapters.
    fn stack(experts: &[GatedMlp], kind: Kind) -> Option<Self> {
        let weights = experts.iter().map(GatedMlp::unadapted_weights).collect::<Option<Vec<_>>>()?;
        let [inner, width] = <[i64; 2]>::try_from(weights[0][0].shape()).ok()?;
        // The rows of operands begin at multiples of 16 bytes.
        let fits = inner % 8 == 0 && width % 8 == 0 && weights.iter().flatten().all(|weight| weight.kind() == kind);
        if !fits {
            return None;
        }
        let count = experts.len() as i64;
        let first: Vec<&Weight> = weights.iter().flat_map(|[gate, up, _]| [*gate, *up]).collect();
        let down: Vec<&Weight> = weights.iter().map(|[_, _, down]| *down).collect();
        let first = Weight::side_by_side(&first)?.view([count, 2 * inner, width]);
        let down = Weight::side_by_side(&down)?.view([count, width, inner]);
        Some(Self { first, down })
    }

    /// Computes `sum_j w_j expert_j(x)` over the chosen experts of each token of `x` (T, D): `weights` and `choices` are (T, k), on the
    /// device of x.
    pub fn sum_of_experts(&self, x: &Tensor, weights: &Tensor, choices: &Tensor) -> Tensor {
        let (dispatch, ends) = Dispatch::on_device(choices, self.first.size()[0]);
        let [gate, up] =
            <[Tensor; 2]>::try_from(grouped_product(&dispatch.gather(x), &self.first, &ends, 2)).expect("two results");
        let activated = scale_rows(ops::swiglu(&gate, &up), &dispatch.sort_pairs(weights));
        dispatch.sum(&grouped_product(&activated.x, &self.down, &ends, 1)[0])
    }
}

/// Returns true if libtorch has a kernel for grouped products of such tensors. On other GPUs it launches a product for each group, and
/// waits to learn their sizes.
fn has_grouped_products(device: Device, kind: Kind) -> bool {
    match (device, kind) {
        (Device::Cuda(index), Kind::BFloat16) => machine::cuda_capability(index).is_some_and(|c| c >= (9, 0)),
        _ => false,
    }
}

/// Computes the products of groups of rows with a frozen matrix each: `x` (P, in), `stack` (E, out, in), and the number of rows
/// up to the last one of each group: `ends` (E), int32. Returns `parts` equal parts of the outputs, (P, out / parts) each.
fn grouped_product(x: &Tensor, stack: &Tensor, ends: &Tensor, parts: i64) -> Vec<Tensor> {
    let part = stack.size()[1] / parts;
    let shape = [x.size()[0], part];
    let forward = || {
        let y = x.internal_grouped_mm(&stack.transpose(-2, -1), Some(ends), None, None);
        // Detached, because a view could not become a result of the graph's node.
        let outputs = (0..parts).map(|i| y.narrow(1, i * part, part).detach()).collect();
        (outputs, [stack, ends].map(Tensor::shallow_clone))
    };
    let options = (x.kind(), x.device());
    differentiable_many(&[x], forward, move |[stack, ends], grads| {
        let filled =
            |g: &Option<Tensor>| g.as_ref().map_or_else(|| Tensor::zeros(shape, options), Tensor::shallow_clone);
        let g = beside_each_other(&grads.iter().map(filled).collect::<Vec<_>>()).contiguous();
        vec![Some(g.internal_grouped_mm(stack, Some(ends), None, None))]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::weight::cast;

    /// The CPU has grouped products, too, in any number format, so that what the device computes is compared with the products of single
    /// experts here.
    #[test]
    fn stacks_compute_what_single_experts_do() {
        let options = (Kind::Float, Device::Cpu);
        let numbers = |shape: &[i64], period: f64| {
            let count: i64 = shape.iter().product();
            ((Tensor::arange(count, options) * period).sin() * 0.5).view(shape)
        };
        // Expert 1 has no token.
        let choices = Tensor::from_slice(&[2i64, 0, 3, 2, 0, 2, 3, 0, 0, 3]).view([5, 2]);
        let stacks = ExpertStacks { first: numbers(&[4, 16, 8], 0.7), down: numbers(&[4, 8, 8], 0.3) };
        let leaves = || [numbers(&[5, 8], 1.3), numbers(&[5, 2], 2.1)].map(|leaf| leaf.copy().set_requires_grad(true));
        let of_experts = |x: &Tensor, weights: &Tensor| {
            let one = |t: i64, j: i64| {
                let e = choices.int64_value(&[t, j]);
                let inner = stacks.first.get(e).matmul(&x.get(t));
                let activated = inner.narrow(0, 0, 8).silu() * inner.narrow(0, 8, 8);
                stacks.down.get(e).matmul(&activated) * weights.get(t).get(j)
            };
            Tensor::stack(&(0..5).map(|t| one(t, 0) + one(t, 1)).collect::<Vec<_>>(), 0)
        };
        let learn = |compute: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            let [x, weights] = leaves();
            let y = compute(&x, &weights);
            (&y * numbers(&[5, 8], 0.9)).sum(Kind::Float).backward();
            [y.detach(), x.grad(), weights.grad()]
        };
        let found = learn(&|x, weights| stacks.sum_of_experts(x, weights, &choices));
        let expected = learn(&of_experts);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(cast(found, Kind::Float).allclose(expected, 1e-5, 1e-6, false), "{found:?} {expected:?}");
        }
    }

    #[test]
    fn groups_are_found_on_the_device_as_on_the_host() {
        let choices = Tensor::from_slice(&[2i64, 0, 4, 2, 0, 2, 4, 5]).view([4, 2]);
        let (_, ends) = Dispatch::on_device(&choices, 7);
        assert_eq!(Vec::<i32>::try_from(&ends).unwrap(), [2, 2, 5, 5, 7, 8, 8]);
    }
}
