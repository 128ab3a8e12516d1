//! The output head, seen only at the rows that need it and in chunks: full logits never exist.
//!
//! Where the head is frozen the gradient with respect to the hidden states is formed in the forward: row i of it is
//! `W^T (onehot - softmax)`, and the backward only scales that row. So the head's products run once, and peak memory
//! is one chunk. A trained head recomputes its chunk in the backward.

use super::chunked::{self, Rows, anchor, chunks};
use super::linear::Linear;
use super::ops::differentiable;
use crate::native::{self, kernels};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk: at 150,000 tokens of vocabulary in float32 a chunk is about 150 MB.
pub(super) const CHUNK: i64 = 256;

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
            for (start, n) in chunks(h.size()[0], CHUNK) {
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
            for rows in chunks(h.size()[0], CHUNK) {
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
            let g_h: Vec<Tensor> = chunks(h.size()[0], CHUNK)
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

/// A head with a bias or an adapter: its chunks run again in the backward.
fn trained(head: &Rc<Linear>, h: &Tensor, targets: &Tensor) -> Scores {
    let targets = targets.shallow_clone();
    let of_rows = move |logits: &Tensor, (start, n): Rows| pick(logits, &targets.narrow(0, start, n)).into();
    let [log_probs, hits] = chunked::recomputed(head, h, CHUNK, of_rows);
    Scores { log_probs, hits: hits.detach(), entropy: None }
}
