//! A number a row from the output head's logits, whatever it is, with the vocabulary seen in chunks of rows: full
//! logits never exist, and neither does a graph over them.
//!
//! The numbers of a row may depend on its own logits only. Where the head is frozen, the gradient of each row with respect
//! to its hidden state is formed in the forward; the backward scales it. A trained head runs its chunks again.

use super::linear::{Linear, cast};
use super::ops::differentiable;
use crate::native;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk: some ten float32 tables of (rows, V) live at once while a divergence is computed.
const CHUNK: i64 = 128;

/// Rows of a chunk: the first, and how many.
pub type Rows = (i64, i64);

/// The chunks that n rows are seen in.
pub fn chunks(n: i64) -> impl Iterator<Item = Rows> {
    (0..n).step_by(CHUNK as usize).map(move |start| (start, CHUNK.min(n - start)))
}

/// `f(logits (n, V) float32, rows)` gives the (n) numbers of some rows; all of them for `h` (N, D): (N) float32.
/// Differentiable in `h` and in what the head trains.
pub fn map(head: &Rc<Linear>, h: &Tensor, f: impl Fn(&Tensor, Rows) -> Tensor + 'static) -> Tensor {
    match head.plain().filter(|weight| !weight.requires_grad()) {
        Some(weight) => frozen(weight, h, f),
        None => trained(head, h, f),
    }
}

fn frozen(weight: &Tensor, h: &Tensor, f: impl Fn(&Tensor, Rows) -> Tensor) -> Tensor {
    let wanted = native::grad_enabled() && h.requires_grad();
    let weight = cast(weight, h.kind());
    differentiable(
        &[h],
        || {
            let (mut values, mut directions) = (Vec::new(), Vec::new());
            for rows in chunks(h.size()[0]) {
                let logits = h.narrow(0, rows.0, rows.1).linear(&weight, None::<&Tensor>).to_kind(Kind::Float);
                if !wanted {
                    values.push(f(&logits, rows));
                    continue;
                }
                let leaf = logits.detach().set_requires_grad(true);
                let value = tch::with_grad(|| f(&leaf, rows));
                native::backward(&[&value], &[&value.ones_like()]).expect("backward of one chunk of logits");
                values.push(value.detach());
                directions.push(leaf.grad().to_kind(h.kind()).matmul(&weight));
            }
            (Tensor::cat(&values, 0), wanted.then(|| Tensor::cat(&directions, 0)))
        },
        |direction, g| {
            let direction = direction.as_ref().expect("formed where a gradient is wanted");
            vec![Some(direction * g.unsqueeze(-1).to_kind(direction.kind()))]
        },
    )
}

/// The head's own parameters receive their gradients from the chunks, run again, directly.
fn trained(head: &Rc<Linear>, h: &Tensor, f: impl Fn(&Tensor, Rows) -> Tensor + 'static) -> Tensor {
    let wanted = native::grad_enabled();
    let device = h.device();
    let state = move || native::rng_state(device).expect("a device has a generator");
    let mut states = Vec::new();
    let values = {
        let _no_grad = tch::no_grad_guard();
        let value = |rows: Rows| {
            if wanted {
                states.push(state()); // an adapter's dropout must repeat in the backward
            }
            f(&head.forward(&h.narrow(0, rows.0, rows.1)).to_kind(Kind::Float), rows)
        };
        Tensor::cat(&chunks(h.size()[0]).map(value).collect::<Vec<_>>(), 0)
    };
    if wanted {
        // Hidden states without gradient (a probe on frozen features): the node must exist anyway.
        let anchor = if h.requires_grad() { h.shallow_clone() } else { h.detach().set_requires_grad(true) };
        let (head, hidden) = (head.clone(), h.detach());
        native::attach(&[&anchor], &[&values], move |grads| {
            let Some(g) = &grads[0] else { return vec![None] };
            let now = state();
            let again = |(rows, rng): (Rows, &Tensor)| {
                native::set_rng_state(device, rng).expect("a state of this generator");
                let h = hidden.narrow(0, rows.0, rows.1).detach().set_requires_grad(true);
                let value = tch::with_grad(|| f(&head.forward(&h).to_kind(Kind::Float), rows));
                native::backward(&[&value], &[&g.narrow(0, rows.0, rows.1)]).expect("backward of one chunk of logits");
                h.grad()
            };
            let parts: Vec<Tensor> = chunks(hidden.size()[0]).zip(&states).map(again).collect();
            native::set_rng_state(device, &now).expect("a state of this generator");
            vec![Some(Tensor::cat(&parts, 0))]
        });
    }
    values
}
