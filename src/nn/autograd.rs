//! Adds operations with a hand-written backward to libtorch's graph.

use crate::native;
use tch::Tensor;

/// Runs `forward` without recording and, if a gradient may be needed, adds its result to the graph with `backward`.
///
/// `forward` returns a new tensor (not a view of an input) and whatever the backward needs. `backward` receives that
/// and the gradient of the result, and returns one gradient per input (`None` for an input that needs none).
pub fn differentiable<S: 'static>(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> (Tensor, S),
    backward: impl Fn(&S, &Tensor) -> Vec<Option<Tensor>> + 'static,
) -> Tensor {
    let n = inputs.len();
    let forward = || {
        let (out, saved) = forward();
        (vec![out], saved)
    };
    let mut out = differentiable_many(inputs, forward, move |saved, grads| match &grads[0] {
        Some(g) => backward(saved, g),
        None => (0..n).map(|_| None).collect(),
    });
    out.remove(0)
}

/// Does the same as [`differentiable`] for several results. The gradient of a result that the loss does not depend on
/// is `None`.
pub fn differentiable_many<S: 'static>(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> (Vec<Tensor>, S),
    backward: impl Fn(&S, &[Option<Tensor>]) -> Vec<Option<Tensor>> + 'static,
) -> Vec<Tensor> {
    let recorded = recorded(inputs);
    let (out, saved) = {
        let _no_grad = tch::no_grad_guard();
        forward()
    };
    if recorded {
        native::attach_backward(inputs, &out.iter().collect::<Vec<_>>(), move |grads| backward(&saved, grads));
    }
    out
}

/// Returns true if the operation must be recorded: gradients are enabled and an input requires one.
pub(super) fn recorded(inputs: &[&Tensor]) -> bool {
    native::grad_enabled() && inputs.iter().any(|t| t.requires_grad())
}

/// Returns the tensor if it requires a gradient, otherwise a copy that does. A node of the graph needs an input that
/// requires a gradient, but the hidden states of a frozen trunk do not, although the head on them may be trained.
pub(super) fn requiring_grad(h: &Tensor) -> Tensor {
    if h.requires_grad() { h.shallow_clone() } else { h.detach().set_requires_grad(true) }
}
