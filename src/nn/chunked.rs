//! Numbers made of the output head's logits, with the vocabulary seen in chunks of rows: full logits never exist, and
//! neither does a graph over them.
//!
//! `sum`: a scalar whose gradient is formed chunk by chunk in the forward, so that the head's products run once, the
//! backward only scales. `recomputed`: numbers a row, whose chunks run again in the backward; for heads with adapters,
//! and for those who weigh rows later. `formed`: the form that `sum` takes over anything that is seen in parts.

use super::linear::{Linear, cast, operand};
use crate::native;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk of `sum`: some ten float32 tables of (rows, V) live at once while a divergence is computed.
pub const CHUNK: i64 = 128;

/// Rows of a chunk: the first, and how many.
pub type Rows = (i64, i64);

/// The chunks of at most `size` that n rows are seen in.
pub fn chunks(n: i64, size: i64) -> impl Iterator<Item = Rows> {
    (0..n).step_by(size as usize).map(move |start| (start, size.min(n - start)))
}

/// The sum of some rows' numbers, and what else is told of each row.
pub struct Sum<const K: usize> {
    /// Scalar, float32; differentiable in the hidden states and in what the head trains.
    pub total: Tensor,
    /// (N) each, without gradient; the first is what was summed.
    pub rows: [Tensor; K],
}

/// `f(logits (n, V) float32, rows)` gives numbers (n) of some rows, of which the first are summed over all of `h` (N, D).
/// A row's numbers may depend on its own logits only.
pub fn sum<const K: usize>(
    head: &Rc<Linear>,
    h: &Tensor,
    f: impl Fn(&Tensor, Rows) -> [Tensor; K] + 'static,
) -> Sum<K> {
    let Some(weight) = head.plain() else {
        let rows = recomputed(head, h, CHUNK, move |logits, rows| f(&logits.to_kind(Kind::Float), rows));
        let total = rows[0].sum(Kind::Float);
        return Sum { total, rows: rows.map(|r| r.detach()) };
    };
    let (trained, wanted) = (weight.requires_grad() && native::grad_enabled(), native::grad_enabled());
    let learns = wanted && (trained || h.requires_grad());
    let (mut parts, mut directions, mut g_weight) = (Vec::new(), Vec::new(), None::<Tensor>);
    {
        let _no_grad = tch::no_grad_guard();
        let narrow = operand(weight, h.kind());
        for rows in chunks(h.size()[0], CHUNK) {
            let h = h.narrow(0, rows.0, rows.1);
            let logits = h.linear(&narrow, None::<&Tensor>).to_kind(Kind::Float);
            if !learns {
                parts.push(f(&logits, rows));
                continue;
            }
            let leaf = logits.set_requires_grad(true);
            let numbers = tch::with_grad(|| f(&leaf, rows));
            native::backward(&[&numbers[0]], &[&numbers[0].ones_like()]).expect("backward of one chunk of logits");
            parts.push(numbers.map(|t| t.detach()));
            let direction = leaf.grad().to_kind(h.kind()); // (n, V)
            directions.push(direction.matmul(&narrow));
            if trained {
                let part = direction.tr().matmul(&h); // (V, D)
                match &mut g_weight {
                    Some(sum) => *sum += part,
                    None => g_weight = Some(cast(&part, weight.kind())),
                }
            }
        }
    }
    let rows = join(parts);
    let total = rows[0].sum(Kind::Float);
    if learns {
        let (direction, leaf) = (Tensor::cat(&directions, 0), weight.shallow_clone());
        native::attach(&[&anchor(h)], &[&total], move |grads| {
            let Some(g) = &grads[0] else { return vec![None] };
            // To the leaf directly: with a tied embedding, head and embedding then add up in the same order whether
            // layers are replayed or not.
            if let Some(sum) = &g_weight {
                native::backward(&[&leaf], &[&(sum * g.to_kind(sum.kind()))]).expect("a leaf takes its gradient");
            }
            vec![Some(&direction * g.to_kind(direction.kind()))]
        });
    }
    Sum { total, rows }
}

/// Numbers (N) each that `f` makes of logits (n, V) in the head's own dtype, in chunks of `size` rows; differentiable in
/// `h` (N, D) and in whatever the head trains, which receives its gradient from the chunks, run again, directly.
pub fn recomputed<const K: usize>(
    head: &Rc<Linear>,
    h: &Tensor,
    size: i64,
    f: impl Fn(&Tensor, Rows) -> [Tensor; K] + 'static,
) -> [Tensor; K] {
    let wanted = native::grad_enabled();
    let device = h.device();
    let state = move || native::rng_state(device).expect("a device has a generator");
    let mut states = Vec::new();
    let columns = {
        let _no_grad = tch::no_grad_guard();
        let numbers = |rows: Rows| {
            if wanted {
                states.push(state()); // an adapter's dropout must repeat in the backward
            }
            f(&head.forward(&h.narrow(0, rows.0, rows.1)), rows)
        };
        join(chunks(h.size()[0], size).map(numbers).collect())
    };
    if wanted {
        let (head, hidden) = (head.clone(), h.detach());
        native::attach(&[&anchor(h)], &columns.each_ref(), move |grads| {
            if grads.iter().all(Option::is_none) {
                return vec![None];
            }
            let now = state();
            let again = |(rows, rng): (Rows, &Tensor)| {
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

/// The sum of `f` over parts of its inputs, a scalar, where no graph over all of them exists: the inputs' gradients are
/// formed part by part in the forward, and scaled in the backward.
pub fn formed<P>(inputs: &[&Tensor], parts: impl IntoIterator<Item = P>, f: impl Fn(&[Tensor], P) -> Tensor) -> Tensor {
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
        native::attach(inputs, &[&total], move |grads| {
            let scaled = |leaf: &Tensor| {
                let (g, own) = (grads[0].as_ref()?, leaf.requires_grad().then(|| leaf.grad())?);
                own.defined().then(|| &own * g.to_kind(own.kind()))
            };
            leaves.iter().map(scaled).collect()
        });
    }
    total
}

/// Columns of chunks, joined.
pub(super) fn join<const K: usize>(parts: Vec<[Tensor; K]>) -> [Tensor; K] {
    std::array::from_fn(|k| Tensor::cat(&parts.iter().map(|p| &p[k]).collect::<Vec<_>>(), 0))
}

/// The hidden states may be a leaf without gradient (a probe on frozen features): the head's node must exist anyway.
pub(super) fn anchor(h: &Tensor) -> Tensor {
    if h.requires_grad() { h.shallow_clone() } else { h.detach().set_requires_grad(true) }
}
