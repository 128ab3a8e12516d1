//! Log-probabilities of sampled tokens under the distribution that sampled them, and that distribution's entropy.
//!
//! `l = log softmax(z / T)` in float32, as the sampler computes it; `H = - sum_i p_i l_i`. Rows are seen in chunks, as
//! in `head`: full logits never exist. A frozen head forms the gradient of the log-probability in the forward,
//! `W^T (onehot - p) / T`; that of the entropy, `- W^T p (l + H) / T`, is formed in the backward, and only where somebody
//! learns from it: an entropy that is only looked at costs no product. A trained head recomputes its chunk.

use super::chunked::{self, Rows, chunks};
use super::head::{self, CHUNK, Scores};
use super::linear::{Linear, cast};
use crate::native;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Log-probabilities of `targets` (N) after hidden states `h` (N, D) at a temperature above 0; with `entropy`, (N) too.
pub fn scores(head: &Rc<Linear>, h: &Tensor, targets: &Tensor, temperature: f64, entropy: bool) -> Scores {
    if temperature == 1.0 && !entropy {
        return head::log_probs(head, h, targets);
    }
    let Scores { log_probs, hits, entropy: h_rows } = match head.plain() {
        Some(weight) if !weight.requires_grad() => frozen(weight, h, targets, temperature),
        _ => trained(head, h, targets, temperature),
    };
    Scores { log_probs, hits, entropy: h_rows.filter(|_| entropy) }
}

/// `log softmax(z / T)` of logits (n, V), in float32.
pub fn spread(logits: &Tensor, temperature: f64) -> Tensor {
    let logits = logits.to_kind(Kind::Float);
    let logits = if temperature == 1.0 { logits } else { logits / temperature };
    logits.log_softmax(-1, Kind::Float)
}

/// Of each row of `l` (n, V): log-probability of its target, whether that is the largest, entropy.
fn pick(l: &Tensor, p: &Tensor, targets: &Tensor) -> [Tensor; 3] {
    let log_prob = l.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let hit = l.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float);
    [log_prob, hit, -(p * l).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)]
}

fn frozen(weight: &Tensor, h: &Tensor, targets: &Tensor, temperature: f64) -> Scores {
    let wanted = native::grad_enabled() && h.requires_grad();
    let weight = cast(weight, h.kind());
    let mut directions = Vec::new();
    let [log_probs, hits, entropy] = {
        let _no_grad = tch::no_grad_guard();
        let chunk = |(start, n)| {
            let target = targets.narrow(0, start, n);
            let l = spread(&h.narrow(0, start, n).linear(&weight, None::<&Tensor>), temperature);
            let p = l.exp();
            let picked = pick(&l, &p, &target);
            if wanted {
                drop(l);
                let ones = Tensor::ones([n, 1], (Kind::Float, h.device()));
                let mut p = p;
                let mut d = p.neg_().scatter_add_(-1, &target.unsqueeze(-1), &ones);
                let d = d.divide_scalar_(temperature).to_kind(h.kind());
                directions.push(d.matmul(&weight)); // (n, D)
            }
            picked
        };
        chunked::join(chunks(h.size()[0], CHUNK).map(chunk).collect())
    };
    if wanted {
        let (hidden, direction) = (h.detach(), Tensor::cat(&directions, 0));
        native::attach(&[h], &[&log_probs, &entropy], move |grads| {
            let kind = hidden.kind();
            let mut sum = grads[0].as_ref().map(|g| &direction * g.unsqueeze(-1).to_kind(kind));
            if let Some(g) = &grads[1] {
                let chunk = |(start, n)| {
                    let l = spread(&hidden.narrow(0, start, n).linear(&weight, None::<&Tensor>), temperature);
                    let p = l.exp();
                    let entropy = -(&p * &l).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float); // (n, 1)
                    let scale = g.narrow(0, start, n).unsqueeze(-1) / -temperature;
                    ((l + entropy) * p * scale).to_kind(kind).matmul(&weight)
                };
                let part = Tensor::cat(&chunks(hidden.size()[0], CHUNK).map(chunk).collect::<Vec<_>>(), 0);
                sum = Some(sum.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
            }
            vec![sum]
        });
    }
    Scores { log_probs, hits, entropy: Some(entropy) }
}

/// A trained head, or one with an adapter: its chunks run again in the backward.
fn trained(head: &Rc<Linear>, h: &Tensor, targets: &Tensor, temperature: f64) -> Scores {
    let targets = targets.shallow_clone();
    let of_rows = move |logits: &Tensor, (start, n): Rows| {
        let l = spread(logits, temperature);
        pick(&l, &l.exp(), &targets.narrow(0, start, n))
    };
    let [log_probs, hits, entropy] = chunked::recomputed(head, h, CHUNK, of_rows);
    Scores { log_probs, hits: hits.detach(), entropy: Some(entropy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Attach, Builder, Place, Source, initial::Initial};
    use tch::Device;

    /// A head (V, D) with random weights.
    fn head(train: bool) -> Rc<Linear> {
        let initial =
            Initial { seed: 3, spread: 0.5, place: |name| Some(Place { name: name.into(), transposed: false }) };
        let none: Vec<&dyn Attach> = Vec::new();
        let builder = Builder::new(Source::Chance(&initial), Device::Cpu, Kind::Float, train, none);
        Rc::new((builder.root() / "lm_head").head(16, 300))
    }

    /// log-probabilities, entropies and gradients of states and weight for `sum(a · log_prob) + sum(b · entropy)`.
    fn results(
        head: &Rc<Linear>,
        h: &Tensor,
        a: &Tensor,
        b: Option<&Tensor>,
        f: impl Fn(&Tensor) -> [Tensor; 2],
    ) -> Vec<Tensor> {
        let h = h.copy().set_requires_grad(true);
        let [log_probs, entropy] = f(&h);
        let mut sum = (&log_probs * a).sum(Kind::Float);
        if let Some(b) = b {
            sum = &sum + (&entropy * b).sum(Kind::Float);
        }
        native::backward(&[&sum], &[&sum.ones_like()]).unwrap();
        let weight = head.plain().unwrap();
        let mut found = vec![log_probs.detach(), entropy.detach(), h.grad()];
        if weight.requires_grad() {
            found.push(weight.grad().copy());
            weight.shallow_clone().zero_grad();
        }
        found
    }

    #[test]
    fn chunks_equal_the_plain_form() {
        tch::manual_seed(5);
        let n = 600; // several chunks
        let options = (Kind::Float, Device::Cpu);
        let (h, targets) = (Tensor::randn([n, 16], options), Tensor::randint(300, [n], (Kind::Int64, Device::Cpu)));
        let (a, b) = (Tensor::randn([n], options), Tensor::randn([n], options));
        for train in [false, true] {
            let head = head(train);
            for temperature in [1.0, 0.6] {
                for bonus in [None, Some(&b)] {
                    let ours = results(&head, &h, &a, bonus, |h| {
                        let s = scores(&head, h, &targets, temperature, true);
                        [s.log_probs, s.entropy.unwrap()]
                    });
                    let plain = results(&head, &h, &a, bonus, |h| {
                        let l = (head.forward(h) / temperature).log_softmax(-1, Kind::Float);
                        let log_prob = l.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
                        [log_prob, -(l.exp() * &l).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)]
                    });
                    for (i, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
                        let gap = (ours - plain).abs().max() / plain.abs().max();
                        let gap = gap.double_value(&[]);
                        assert!(
                            gap < 1e-5,
                            "trained {train}, T {temperature}, bonus {}: {i} is {gap:e} off",
                            bonus.is_some()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn temperature_one_without_entropy_is_the_plain_head() {
        tch::manual_seed(6);
        let head = head(false);
        let h = Tensor::randn([9, 16], (Kind::Float, Device::Cpu));
        let targets = Tensor::arange(9, (Kind::Int64, Device::Cpu));
        let s = scores(&head, &h, &targets, 1.0, false);
        assert!(s.entropy.is_none() && s.log_probs.equal(&head::log_probs(&head, &h, &targets).log_probs));
        let with = scores(&head, &h, &targets, 1.0, true);
        assert!((with.log_probs - s.log_probs).abs().max().double_value(&[]) < 1e-5);
        assert!(with.hits.equal(&s.hits));
    }
}
