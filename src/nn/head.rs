//! Log-probabilities and entropies from the output head, only for the rows that need them, a chunk of rows at a time.
//!
//! Logits of all rows (T, V) would be the largest tensor of a training step, so they never exist. With a frozen head,
//! the gradient with respect to the hidden states is computed in the forward: its row i is `W^T (onehot - softmax)`,
//! and the backward only scales that row. The head's products then run once, and peak memory is one chunk. A trained
//! head recomputes its chunks in the backward, and sums the gradient of its weight over them.
//!
//! Log-probabilities may be taken at a sampling temperature T: `l = log softmax(z / T)` in float32. The entropy is
//! `H = - sum_i p_i l_i`.

use super::autograd::{differentiable_many, requiring_grad};
use super::chunked::{self, HeadWeightGradient, Reduction, RowRange, chunks, join_chunks};
use super::linear::Linear;
use super::weight::Weight;
use crate::native::{self, cuda, kernels};
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Rows per chunk: at 150,000 tokens of vocabulary in float32 a chunk is about 150 MB.
pub(super) const CHUNK: i64 = 256;

/// Log-probability, accuracy and entropy for each target token.
pub struct TargetScores {
    /// (N) log-probability of the target, float32, differentiable.
    pub log_probs: Tensor,
    /// (N) 1 where the target was the most likely token, float32.
    pub hits: Tensor,
    /// (N) entropy of the distribution in nats, float32, differentiable; only if it was requested.
    pub entropy: Option<Tensor>,
}

/// The sampling temperature, and whether the entropy is wanted.
#[derive(Clone, Copy)]
struct HeadOptions {
    temperature: f64,
    entropy: bool,
}

impl HeadOptions {
    /// Returns log-probabilities, hits and entropies (zeros if they are not wanted) of logits (n, V), (n) each. This is
    /// the only definition of a log-probability on each device, with or without gradient, trained head or entropy: a
    /// policy and a reference model with equal weights get equal bits.
    fn chunk_scores(self, logits: &Tensor, targets: &Tensor) -> [Tensor; 3] {
        let by_kernel = self.scores_by_kernel(logits, targets, false);
        by_kernel.unwrap_or_else(|| self.scores_by_libtorch(logits, targets))
    }

    /// Returns the same as `chunk_scores`, and the gradient of each row's log-probability with respect to its logits
    /// (n, V), in their dtype.
    fn scores_with_gradient(self, logits: Tensor, targets: &Tensor) -> ([Tensor; 3], Tensor) {
        if let Some(scores) = self.scores_by_kernel(&logits, targets, true) {
            return (scores, logits);
        }
        let scores = self.chunk_scores(&logits, targets);
        let mut p = tempered_log_softmax(&logits, self.temperature).exp_();
        let ones = Tensor::ones([targets.size()[0], 1], (Kind::Float, logits.device()));
        let mut direction = p.neg_().scatter_add_(-1, &targets.unsqueeze(-1), &ones);
        (scores, direction.divide_scalar_(self.temperature).to_kind(logits.kind()))
    }

    /// Returns the gradient of the entropies with respect to the logits (n, V), float32, given that of a loss with respect
    /// to the entropies g (n): `- g p (l + H) / T`.
    fn entropy_gradient(self, logits: &Tensor, g: &Tensor) -> Tensor {
        let l = tempered_log_softmax(logits, self.temperature);
        let p = l.exp();
        let entropy = -(&p * &l).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float); // (n, 1)
        (l + entropy) * p * (g.unsqueeze(-1) / -self.temperature)
    }

    /// Computes the scores by our own loop or kernel; `None` if there is none for these logits. With `direction` it
    /// overwrites the logits by the gradient of each row's log-probability.
    fn scores_by_kernel(self, logits: &Tensor, targets: &Tensor, direction: bool) -> Option<[Tensor; 3]> {
        let (log_probs, hits, entropy) = match cuda::kernels_for(&[logits]) {
            Some(kernels) => kernels.head(logits, targets, self.temperature, self.entropy, direction),
            None if kernels::supports(&[logits]) => {
                kernels::best().head(logits, targets, self.temperature, self.entropy, direction)
            }
            None => return None,
        };
        let entropy = entropy.unwrap_or_else(|| hits.zeros_like());
        Some([log_probs, hits, entropy])
    }

    /// Computes the log-probability of each target, whether it is the most likely token, and the entropy (zeros if it
    /// is not wanted) by libtorch's operations, which are differentiable.
    fn scores_by_libtorch(self, logits: &Tensor, targets: &Tensor) -> [Tensor; 3] {
        let l = tempered_log_softmax(logits, self.temperature);
        let log_prob = l.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
        let hit = l.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float);
        let entropy = match self.entropy {
            true => -(l.exp() * &l).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float),
            false => hit.zeros_like(),
        };
        [log_prob, hit, entropy]
    }
}

/// Returns `log softmax(z / T)` of logits (n, V), in float32.
pub fn tempered_log_softmax(logits: &Tensor, temperature: f64) -> Tensor {
    let logits = logits.to_kind(Kind::Float);
    let logits = if temperature == 1.0 { logits } else { logits / temperature };
    logits.log_softmax(-1, Kind::Float)
}

/// Returns the log-probabilities of `targets` (N) given hidden states `h` (N, D).
pub fn log_probs(head: &Rc<Linear>, h: &Tensor, targets: &Tensor) -> TargetScores {
    target_scores(head, h, targets, 1.0, false)
}

/// Returns the log-probabilities of `targets` (N) in `softmax(z / T)`, T above 0, given hidden states `h` (N, D). With
/// `entropy`, also the entropies `- sum_i p_i log p_i` (N).
pub fn target_scores(head: &Rc<Linear>, h: &Tensor, targets: &Tensor, temperature: f64, entropy: bool) -> TargetScores {
    let reading = HeadOptions { temperature, entropy };
    match head.plain_weight() {
        Some(weight) if weight.trained().is_none() => frozen_head_scores(weight, h, targets, reading),
        Some(weight) => trained_head_scores(weight, h, targets, reading),
        None => recomputed_head_scores(head, h, targets, reading),
    }
}

/// Computes scores under a frozen weight (V, D). The gradient of the log-probability, `W^T (onehot - p) / T`, is
/// computed in the forward. That of the entropy, `- W^T p (l + H) / T`, is computed in the backward and only if the
/// loss depends on it: an entropy that is only a metric costs no product.
fn frozen_head_scores(weight: &Weight, h: &Tensor, targets: &Tensor, reading: HeadOptions) -> TargetScores {
    let wanted = native::grad_enabled() && h.requires_grad();
    let operand = weight.operand(h.kind());
    let of_chunk = |logits: Tensor, (start, n): RowRange| {
        let targets = targets.narrow(0, start, n);
        match wanted {
            true => {
                let (scores, direction) = reading.scores_with_gradient(logits, &targets);
                (scores, Some(direction))
            }
            false => (reading.chunk_scores(&logits, &targets), None),
        }
    };
    let Reduction { rows: [log_probs, hits, entropy], direction, .. } =
        chunked::reduce_in_forward(weight, &operand, h, CHUNK, of_chunk);
    let entropy = Some(entropy).filter(|_| reading.entropy);
    if let Some(direction) = direction {
        let hidden = h.detach();
        let outputs: Vec<&Tensor> = std::iter::once(&log_probs).chain(&entropy).collect();
        native::attach_backward(&[h], &outputs, move |grads| {
            let kind = hidden.kind();
            let mut sum = grads[0].as_ref().map(|g| &direction * g.unsqueeze(-1).to_kind(kind));
            if let Some(Some(g)) = grads.get(1) {
                let chunk = |(start, n)| {
                    let logits = operand.product(&hidden.narrow(0, start, n));
                    operand.product_back(&reading.entropy_gradient(&logits, &g.narrow(0, start, n)).to_kind(kind))
                };
                let part = Tensor::cat(&chunks(hidden.size()[0], CHUNK).map(chunk).collect::<Vec<_>>(), 0);
                sum = Some(sum.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
            }
            vec![sum]
        });
    }
    TargetScores { log_probs, hits, entropy }
}

/// Computes scores under a trained weight (V, D) without bias or adapter. If all rows fit into one chunk, the gradient of
/// the log-probabilities with respect to its logits is kept for the backward; otherwise the backward computes each chunk
/// again. That of the entropy is computed there if the loss depends on it. The weight's gradient is summed where it stays:
/// no other tensor of its size exists, but for its copy in the dtype of h.
fn trained_head_scores(weight: &Weight, h: &Tensor, targets: &Tensor, reading: HeadOptions) -> TargetScores {
    let keep = native::grad_enabled() && h.size()[0] <= CHUNK;
    let leaf = weight.trained().map(Tensor::shallow_clone);
    let mut scores = differentiable_many(
        &[&requiring_grad(h)],
        || {
            let (operand, mut kept) = (weight.operand(h.kind()), None);
            let of_chunk = |(start, n): RowRange| {
                let (logits, targets) = (operand.product(&h.narrow(0, start, n)), targets.narrow(0, start, n));
                if !keep {
                    return reading.chunk_scores(&logits, &targets);
                }
                let (scores, direction) = reading.scores_with_gradient(logits, &targets);
                kept = Some(direction);
                scores
            };
            let [log_probs, hits, entropy] = join_chunks(chunks(h.size()[0], CHUNK).map(of_chunk).collect());
            let entropy = Some(entropy).filter(|_| reading.entropy);
            let saved = (h.detach(), operand, targets.shallow_clone(), kept);
            ([log_probs, hits].into_iter().chain(entropy).collect(), saved)
        },
        move |(h, operand, targets, kept), grads| {
            let (of_log_probs, of_entropy) = (&grads[0], grads.get(2).and_then(Option::as_ref));
            if of_log_probs.is_none() && of_entropy.is_none() {
                return vec![None];
            }
            let mut g_weight = HeadWeightGradient::new(leaf.as_ref());
            let of_chunk = |(start, n): RowRange| {
                let h = h.narrow(0, start, n);
                let mut g_logits = of_entropy
                    .map(|g| reading.entropy_gradient(&operand.product(&h), &g.narrow(0, start, n)).to_kind(h.kind()));
                if let Some(g) = of_log_probs {
                    let mut direction = match kept {
                        Some(direction) => direction.shallow_clone(),
                        None => reading.scores_with_gradient(operand.product(&h), &targets.narrow(0, start, n)).1,
                    };
                    let _ = direction.multiply_(&g.narrow(0, start, n).unsqueeze(-1).to_kind(h.kind()));
                    g_logits = Some(g_logits.map_or_else(|| direction.shallow_clone(), |g| g + &direction));
                }
                let g_logits = g_logits.expect("one of both is given");
                g_weight.add(&g_logits, &h);
                operand.product_back(&g_logits)
            };
            let g_h: Vec<Tensor> = chunks(h.size()[0], CHUNK).map(of_chunk).collect();
            g_weight.add_to_leaf(None);
            vec![Some(Tensor::cat(&g_h, 0))]
        },
    );
    let entropy = reading.entropy.then(|| scores.remove(2));
    let hits = scores.remove(1).detach();
    TargetScores { log_probs: scores.remove(0), hits, entropy }
}

/// Computes scores under a head with a bias, an adapter or a change of its products. Its chunks run again in the
/// backward, where libtorch's autograd computes the gradients.
fn recomputed_head_scores(head: &Rc<Linear>, h: &Tensor, targets: &Tensor, reading: HeadOptions) -> TargetScores {
    let targets = targets.shallow_clone();
    let of_rows = move |logits: &Tensor, (start, n): RowRange| {
        let targets = targets.narrow(0, start, n);
        if native::grad_enabled() {
            return reading.scores_by_libtorch(logits, &targets);
        }
        reading.chunk_scores(logits, &targets)
    };
    let [log_probs, hits, entropy] = chunked::per_row_recomputed(head, h, CHUNK, of_rows);
    TargetScores { log_probs, hits: hits.detach(), entropy: Some(entropy).filter(|_| reading.entropy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{AdapterPlan, ModelBuilder, ParamMapping, WeightSource, initial::InitialWeights};
    use tch::Device;

    /// Returns a head (V, D) with random weights.
    fn head(train: bool) -> Rc<Linear> {
        let initial = InitialWeights {
            seed: 3,
            std: 0.5,
            map_param: |name| Some(ParamMapping { name: name.into(), transposed: false }),
        };
        let none: Vec<&dyn AdapterPlan> = Vec::new();
        let trained = train.then(|| Box::new(|_: &str, _| true) as _);
        let builder = ModelBuilder::new(WeightSource::Random(&initial), Device::Cpu, Kind::Float, trained, none);
        Rc::new((builder.root() / "lm_head").output_head(16, 300))
    }

    /// Returns log-probabilities, entropies, and the gradients of hidden states and weight for the loss
    /// `sum(a · log_prob) + sum(b · entropy)`.
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
        let weight = head.plain_weight().unwrap();
        let mut found = vec![log_probs.detach(), entropy.detach(), h.grad()];
        if let Some(weight) = weight.trained() {
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
                        let s = target_scores(&head, h, &targets, temperature, true);
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

    /// A policy's ratio to itself is exactly 1, and its divergence from itself exactly 0, only if all these ways to
    /// compute a log-probability give the same bits.
    #[test]
    fn a_log_probability_has_the_same_bits_however_it_is_asked_for() {
        tch::manual_seed(7);
        let n = 600;
        for kind in [Kind::Float, Kind::BFloat16] {
            let h = Tensor::randn([n, 16], (Kind::Float, Device::Cpu)).to_kind(kind);
            let targets = Tensor::randint(300, [n], (Kind::Int64, Device::Cpu));
            for temperature in [1.0, 0.7] {
                let mut found = Vec::new();
                for (train, entropy, grad) in [false, true]
                    .into_iter()
                    .flat_map(|t| [false, true].map(|e| (t, e)))
                    .flat_map(|(t, e)| [false, true].map(|g| (t, e, g)))
                {
                    let (head, h) = (head(train), h.detach().set_requires_grad(grad));
                    let ask = || target_scores(&head, &h, &targets, temperature, entropy);
                    let s = if grad { ask() } else { tch::no_grad(ask) };
                    assert_eq!(s.entropy.is_some(), entropy);
                    found.push((format!("trained {train}, entropy {entropy}, gradient {grad}"), s.log_probs.detach()));
                }
                for (what, log_probs) in &found {
                    assert!(log_probs.equal(&found[0].1), "{kind:?}, T {temperature}: {what} differs");
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
        let s = target_scores(&head, &h, &targets, 1.0, false);
        assert!(s.entropy.is_none() && s.log_probs.equal(&log_probs(&head, &h, &targets).log_probs));
    }
}
