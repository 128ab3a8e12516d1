//! Computes numbers from the output head's logits, a chunk of rows at a time.
//!
//! Logits of a whole packed row (T, V) would take gigabytes, and a graph over them several times that. Neither exists
//! here. There are two strategies:
//! - `reduce_in_forward`: the gradient is computed chunk by chunk in the forward, so that the head's products run once
//!   and the backward only scales it. For heads that are a plain product, and gradients that are known up to a factor
//!   for each row (under a frozen weight) or for all rows (under a trained one, as in [`sum_over_logits`]).
//! - `per_row_recomputed`: each chunk runs again in the backward. For heads with adapters, and losses that weight rows
//!   after the fact.
//!
//! [`sum_of_parts`] is like the first, for any inputs that can be processed in parts.

use super::autograd::requiring_grad;
use super::linear::Linear;
use super::weight::{Operand, Weight, add_weight_gradient, weight_gradient};
use crate::native;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk of [`sum_over_logits`]. While a divergence is computed, about ten float32 tensors of (rows, V) exist
/// at once.
pub const CHUNK: i64 = 128;

/// The rows of a chunk: the first one, and how many.
pub type RowRange = (i64, i64);

/// Splits n rows into chunks of at most `size` rows.
pub fn chunks(n: i64, size: i64) -> impl Iterator<Item = RowRange> {
    (0..n).step_by(size as usize).map(move |start| (start, size.min(n - start)))
}

/// A sum over rows, and the numbers of each row.
pub struct ChunkedSum<const K: usize> {
    /// Scalar, float32; differentiable with respect to the hidden states and the head's trained parameters.
    pub total: Tensor,
    /// (N) each, without gradient. The first is the one that was summed.
    pub rows: [Tensor; K],
}

/// The gradient (V, D) of the weight of a head, summed over chunks of rows. Nothing if the weight is frozen.
///
/// It is added to the leaf directly, not through the graph. With a tied embedding, the gradients of head and embedding
/// are then summed in the same order whether layers are replayed or not.
pub(super) struct HeadWeightGradient {
    leaf: Option<Tensor>,
    sum: Option<Tensor>,
}

impl HeadWeightGradient {
    pub(super) fn new(leaf: Option<&Tensor>) -> Self {
        Self { leaf: leaf.map(Tensor::shallow_clone), sum: None }
    }

    /// Adds the gradient of one chunk: that of its logits (n, V) times its hidden states (n, D).
    pub(super) fn add(&mut self, g_logits: &Tensor, h: &Tensor) {
        let Some(leaf) = &self.leaf else { return };
        match &mut self.sum {
            Some(sum) => add_weight_gradient(sum, g_logits, h),
            None => self.sum = Some(weight_gradient(g_logits, h, leaf.kind())),
        }
    }

    /// Adds the sum, times a scalar, to the gradient of the leaf, which it becomes if there is none. Further calls add
    /// nothing.
    pub(super) fn add_to_leaf(&mut self, factor: Option<&Tensor>) {
        let (Some(leaf), Some(mut sum)) = (&self.leaf, self.sum.take()) else { return };
        if let Some(factor) = factor {
            let _ = sum.multiply_(&factor.to_kind(sum.kind()));
        }
        native::add_gradient(leaf, sum);
    }
}

/// Numbers of all rows, and the gradients that were computed with them.
pub(super) struct Reduction<const K: usize> {
    /// (N) each.
    pub rows: [Tensor; K],
    /// (N, D): the gradient of each row's first number with respect to its hidden state; `None` if it was not computed.
    pub direction: Option<Tensor>,
    /// The gradient of the sum of all rows' first numbers with respect to the head's weight.
    pub g_weight: HeadWeightGradient,
}

/// Computes K numbers for each row of `h` (N, D) under a head that is a plain product with `weight` (`operand` in the
/// dtype of h), `size` rows at a time. `f(logits (n, V), rows)` returns the numbers, (n) each, and perhaps the gradient
/// of the first with respect to the logits (n, V), in the dtype of h; it may overwrite the logits. Runs without
/// gradient.
pub(super) fn reduce_in_forward<const K: usize>(
    weight: &Weight,
    operand: &Operand,
    h: &Tensor,
    size: i64,
    f: impl Fn(Tensor, RowRange) -> ([Tensor; K], Option<Tensor>),
) -> Reduction<K> {
    let _no_grad = tch::no_grad_guard();
    let (mut parts, mut directions) = (Vec::new(), Vec::new());
    let mut g_weight = HeadWeightGradient::new(weight.trained());
    for rows in chunks(h.size()[0], size) {
        let h = h.narrow(0, rows.0, rows.1);
        let (numbers, direction) = f(operand.product(&h), rows);
        parts.push(numbers);
        if let Some(direction) = direction {
            directions.push(operand.product_back(&direction)); // (n, D)
            g_weight.add(&direction, &h);
        }
    }
    let direction = (!directions.is_empty()).then(|| Tensor::cat(&directions, 0));
    Reduction { rows: join_chunks(parts), direction, g_weight }
}

/// Sums numbers that `f` computes from the logits of hidden states `h` (N, D). `f(logits (n, V) float32, rows)`
/// returns K numbers for each of the given rows, (n) each; the first of the K is summed over all N rows. A row's
/// numbers may depend only on its own logits.
pub fn sum_over_logits<const K: usize>(
    head: &Rc<Linear>,
    h: &Tensor,
    f: impl Fn(&Tensor, RowRange) -> [Tensor; K] + 'static,
) -> ChunkedSum<K> {
    let Some(weight) = head.plain_weight() else {
        let rows = per_row_recomputed(head, h, CHUNK, move |logits, rows| f(&logits.to_kind(Kind::Float), rows));
        let total = rows[0].sum(Kind::Float);
        return ChunkedSum { total, rows: rows.map(|r| r.detach()) };
    };
    let learns = native::grad_enabled() && (weight.trained().is_some() || h.requires_grad());
    let of_chunk = |logits: Tensor, rows: RowRange| {
        let logits = logits.to_kind(Kind::Float);
        if !learns {
            return (f(&logits, rows), None);
        }
        let leaf = logits.set_requires_grad(true);
        let numbers = tch::with_grad(|| f(&leaf, rows));
        native::backward(&[&numbers[0]], &[&numbers[0].ones_like()]).expect("backward of one chunk of logits");
        (numbers.map(|t| t.detach()), Some(leaf.grad().to_kind(h.kind())))
    };
    let Reduction { rows, direction, mut g_weight } =
        reduce_in_forward(weight, &weight.operand(h.kind()), h, CHUNK, of_chunk);
    let total = rows[0].sum(Kind::Float);
    if let Some(direction) = direction {
        native::attach_backward(&[&requiring_grad(h)], &[&total], move |grads| {
            let Some(g) = &grads[0] else { return vec![None] };
            g_weight.add_to_leaf(Some(g));
            vec![Some(&direction * g.to_kind(direction.kind()))]
        });
    }
    ChunkedSum { total, rows }
}

/// Returns the K numbers, (N) each, that `f` computes from logits (n, V) in the head's own dtype, `size` rows at a
/// time. They are differentiable with respect to `h` (N, D) and the head's trained parameters: the backward runs each
/// chunk again, which adds the parameters' gradients directly to the leaves.
pub fn per_row_recomputed<const K: usize>(
    head: &Rc<Linear>,
    h: &Tensor,
    size: i64,
    f: impl Fn(&Tensor, RowRange) -> [Tensor; K] + 'static,
) -> [Tensor; K] {
    let wanted = native::grad_enabled();
    let device = h.device();
    let state = move || native::rng_state(device).expect("a device has a generator");
    let mut states = Vec::new();
    let columns = {
        let _no_grad = tch::no_grad_guard();
        let numbers = |rows: RowRange| {
            if wanted {
                states.push(state()); // an adapter's dropout must repeat in the backward
            }
            f(&head.forward(&h.narrow(0, rows.0, rows.1)), rows)
        };
        join_chunks(chunks(h.size()[0], size).map(numbers).collect())
    };
    if wanted {
        let (head, hidden) = (head.clone(), h.detach());
        native::attach_backward(&[&requiring_grad(h)], &columns.each_ref(), move |grads| {
            if grads.iter().all(Option::is_none) {
                return vec![None];
            }
            let now = state();
            let again = |(rows, rng): (RowRange, &Tensor)| {
                native::set_rng_state(device, rng).expect("a state of this generator");
                let h = hidden.narrow(0, rows.0, rows.1).detach().set_requires_grad(true);
                let numbers = tch::with_grad(|| f(&head.forward(&h), rows));
                let learnt: Vec<(&Tensor, Tensor)> = numbers
                    .iter()
                    .zip(grads)
                    .filter_map(|(t, g)| Some((t, g.as_ref()?.narrow(0, rows.0, rows.1))))
                    .filter(|(t, _)| t.requires_grad())
                    .collect();
                let (outputs, given): (Vec<&Tensor>, Vec<&Tensor>) = learnt.iter().map(|(t, g)| (*t, g)).unzip();
                native::backward(&outputs, &given).expect("backward of one chunk of the head");
                h.grad()
            };
            let parts: Vec<Tensor> = chunks(hidden.size()[0], size).zip(&states).map(again).collect();
            native::set_rng_state(device, &now).expect("a state of this generator");
            vec![Some(Tensor::cat(&parts, 0))]
        });
    }
    columns
}

/// Returns the sum of the scalars that `f` computes from `inputs` for each part, without ever holding a graph over
/// all parts: the inputs' gradients are computed part by part in the forward and only scaled in the backward.
pub fn sum_of_parts<P>(
    inputs: &[&Tensor],
    parts: impl IntoIterator<Item = P>,
    f: impl Fn(&[Tensor], P) -> Tensor,
) -> Tensor {
    let learns = native::grad_enabled() && inputs.iter().any(|t| t.requires_grad());
    let leaf = |t: &&Tensor| t.detach().set_requires_grad(learns && t.requires_grad());
    let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect();
    let mut total = Tensor::zeros([], (Kind::Float, inputs[0].device()));
    for part in parts {
        let value = if learns { tch::with_grad(|| f(&leaves, part)) } else { tch::no_grad(|| f(&leaves, part)) };
        if learns {
            native::backward(&[&value], &[&value.ones_like()]).expect("backward of one part of a sum");
        }
        total += value.detach();
    }
    if learns {
        native::attach_backward(inputs, &[&total], move |grads| {
            let scaled = |leaf: &Tensor| {
                let (g, own) = (grads[0].as_ref()?, leaf.requires_grad().then(|| leaf.grad())?);
                own.defined().then(|| &own * g.to_kind(own.kind()))
            };
            leaves.iter().map(scaled).collect()
        });
    }
    total
}

/// Concatenates the chunks of each of the K columns.
pub(super) fn join_chunks<const K: usize>(parts: Vec<[Tensor; K]>) -> [Tensor; K] {
    std::array::from_fn(|k| Tensor::cat(&parts.iter().map(|p| &p[k]).collect::<Vec<_>>(), 0))
}
