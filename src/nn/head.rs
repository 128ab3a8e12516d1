//! The output head, seen only at the rows that need it and in chunks: full logits never exist.
//!
//! Where the head is frozen the gradient with respect to the hidden states is formed in the forward: row i of it is
//! `W^T (onehot - softmax)`, and the backward only scales that row. So the head's products run once, and peak memory
//! is one chunk. A trained head recomputes its chunk in the backward.

use super::linear::Linear;
use super::ops::differentiable;
use crate::native::{self, kernels};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk: at 150,000 tokens of vocabulary in float32 a chunk is about 150 MB.
const CHUNK: i64 = 256;

/// What a row of the head tells about its target.
pub struct Scores {
    /// (N) log-probability of the target, float32, differentiable.
    pub log_probs: Tensor,
    /// (N) 1 where the target was the most likely token, float32.
    pub hits: Tensor,
    /// (N) entropy of the distribution in nats, float32, differentiable; where it was asked for.
    pub entropy: Option<Tensor>,
}

/// Log-probabilities of `targets` (N) after hidden states `h` (N, D).
pub fn log_probs(head: &Rc<Linear>, h: &Tensor, targets: &Tensor) -> Scores {
    match head.plain() {
        Some(weight) if !weight.requires_grad() => frozen(weight, h, targets),
        Some(weight) if kernels::serves(&[h]) => plain(weight, h, targets),
        _ => trained(head, h, targets),
    }
}

pub(super) fn rows(n: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..n).step_by(CHUNK as usize).map(move |start| (start, CHUNK.min(n - start)))
}

/// log-probability of each target and whether it is the largest, from logits (n, V).
fn pick(logits: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
    if !native::grad_enabled() && kernels::serves(&[logits]) {
        return kernels::best().head(logits, targets, false);
    }
    let logits = logits.to_kind(Kind::Float);
    let target = targets.unsqueeze(-1);
    let log_probs = logits.log_softmax(-1, Kind::Float).gather(-1, &target, false).squeeze_dim(-1);
    let hits = logits.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float);
    (log_probs, hits)
}

fn frozen(weight: &Tensor, h: &Tensor, targets: &Tensor) -> Scores {
    let wanted = native::grad_enabled() && h.requires_grad();
    let weight = super::linear::cast(weight, h.kind());
    let mut hits = Vec::new();
    let log_probs = differentiable(
        &[h],
        || {
            let (mut values, mut directions) = (Vec::new(), Vec::new());
            for (start, n) in rows(h.size()[0]) {
                let (h, target) = (h.narrow(0, start, n), targets.narrow(0, start, n));
                let logits = h.linear(&weight, None::<&Tensor>);
                if wanted && kernels::serves(&[&logits]) {
                    let (value, hit) = kernels::best().head(&logits, &target, true);
                    values.push(value);
                    hits.push(hit);
                    directions.push(logits.matmul(&weight));
                } else if wanted {
                    // One float32 buffer serves as logits, softmax and direction in turn.
                    let mut wide = logits.to_kind(Kind::Float);
                    drop(logits);
                    let (largest, best) = wide.max_dim(-1, true);
                    let target = target.unsqueeze(-1);
                    hits.push(best.eq_tensor(&target).to_kind(Kind::Float).squeeze_dim(-1));
                    let at_target = wide.gather(-1, &target, false);
                    let _ = wide.subtract_(&largest).exp_();
                    let total = wide.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
                    values.push((at_target - largest - total.log()).squeeze_dim(-1));
                    let mut direction = wide.divide_(&total.neg());
                    let _ = direction.scatter_add_(-1, &target, &Tensor::ones([n, 1], (Kind::Float, h.device())));
                    directions.push(direction.to_kind(h.kind()).matmul(&weight));
                } else {
                    let (value, hit) = pick(&logits, &target);
                    values.push(value);
                    hits.push(hit);
                }
            }
            let direction = wanted.then(|| Tensor::cat(&directions, 0)); // (N, D)
            (Tensor::cat(&values, 0), direction)
        },
        |direction, g| {
            let direction = direction.as_ref().expect("formed where a gradient is wanted");
            vec![Some(direction * g.unsqueeze(-1).to_kind(direction.kind()))]
        },
    );
    Scores { log_probs, hits: Tensor::cat(&hits, 0), entropy: None }
}

/// A trained weight (V, D) without bias or adapter, on the CPU. One chunk keeps its directions for the backward;
/// several are computed again there.
///
/// The weight's gradient goes to the leaf directly: with a tied embedding, head and embedding then add up in the same
/// order whether layers are replayed or not.
fn plain(weight: &Tensor, h: &Tensor, targets: &Tensor) -> Scores {
    let wanted = native::grad_enabled();
    let keep = wanted && h.size()[0] <= CHUNK;
    let chunk = |h: &Tensor, weight: &Tensor, targets: &Tensor, (start, n), direction| {
        let (h, targets) = (h.narrow(0, start, n), targets.narrow(0, start, n));
        let logits = h.linear(weight, None::<&Tensor>);
        let (value, hit) = kernels::best().head(&logits, &targets, direction);
        (value, hit, logits)
    };
    let (mut hits, leaf) = (Vec::new(), weight.shallow_clone());
    let log_probs = differentiable(
        &[&anchor(h)],
        || {
            let narrow = super::linear::cast(weight, h.kind());
            let (mut values, mut kept) = (Vec::new(), None);
            for rows in rows(h.size()[0]) {
                let (value, hit, direction) = chunk(h, &narrow, targets, rows, keep);
                values.push(value);
                hits.push(hit);
                kept = keep.then_some(direction);
            }
            let saved = (h.detach(), wanted.then_some(narrow), targets.shallow_clone(), kept);
            (Tensor::cat(&values, 0), saved)
        },
        move |(h, weight, targets, kept), g| {
            let weight = weight.as_ref().expect("kept where a gradient is wanted");
            let mut g_weight: Option<Tensor> = None;
            let g_h: Vec<Tensor> = rows(h.size()[0])
                .map(|(start, n)| {
                    let mut direction = match kept {
                        Some(d) => d.shallow_clone(),
                        None => chunk(h, weight, targets, (start, n), true).2,
                    };
                    let _ = direction.multiply_(&g.narrow(0, start, n).unsqueeze(-1).to_kind(h.kind()));
                    let part = direction.tr().matmul(&h.narrow(0, start, n)); // (V, D)
                    match &mut g_weight {
                        Some(sum) => *sum += part,
                        None => g_weight = Some(super::linear::cast(&part, leaf.kind())),
                    }
                    direction.matmul(weight)
                })
                .collect();
            if let Some(g) = g_weight {
                native::backward(&[&leaf], &[&g]).expect("a leaf takes its gradient");
            }
            vec![Some(Tensor::cat(&g_h, 0))]
        },
    );
    Scores { log_probs, hits: Tensor::cat(&hits, 0), entropy: None }
}

/// The hidden states may be a leaf without gradient (a probe on frozen features): the head's node must exist anyway.
pub(super) fn anchor(h: &Tensor) -> Tensor {
    if h.requires_grad() { h.shallow_clone() } else { h.detach().set_requires_grad(true) }
}

/// The head's own parameters receive their gradients from the recomputed chunks directly.
fn trained(head: &Rc<Linear>, h: &Tensor, targets: &Tensor) -> Scores {
    let (mut hits, mut states) = (Vec::new(), Vec::new());
    let wanted = native::grad_enabled();
    let device = h.device();
    let state = move || native::rng_state(device).expect("a device has a generator");
    let values = {
        let _no_grad = tch::no_grad_guard();
        let chunk = |(start, n)| {
            if wanted {
                states.push(state()); // an adapter's dropout must repeat in the backward
            }
            let (value, hit) = pick(&head.forward(&h.narrow(0, start, n)), &targets.narrow(0, start, n));
            hits.push(hit);
            value
        };
        Tensor::cat(&rows(h.size()[0]).map(chunk).collect::<Vec<_>>(), 0)
    };
    if wanted {
        let anchor = anchor(h);
        let (head, hidden, targets) = (head.clone(), h.detach(), targets.shallow_clone());
        native::attach(&[&anchor], &[&values], move |grads| {
            let Some(g) = &grads[0] else { return vec![None] };
            let now = state();
            let parts: Vec<Tensor> = rows(hidden.size()[0])
                .zip(&states)
                .map(|((start, n), rng)| {
                    native::set_rng_state(device, rng).expect("a state of this generator");
                    let h = hidden.narrow(0, start, n).detach().set_requires_grad(true);
                    let value = tch::with_grad(|| pick(&head.forward(&h), &targets.narrow(0, start, n)).0);
                    native::backward(&[&value], &[&g.narrow(0, start, n)]).expect("backward of one chunk of the head");
                    h.grad()
                })
                .collect();
            native::set_rng_state(device, &now).expect("a state of this generator");
            vec![Some(Tensor::cat(&parts, 0))]
        });
    }
    Scores { log_probs: values, hits: Tensor::cat(&hits, 0), entropy: None }
}
