//! Products of one input with several weights, each trained, or frozen and perhaps with a low-rank update beside it:
//! `y_i = x W_i^T + bias_i + s_i (m x) A_i^T B_i^T`.
//!
//! Narrow products are slow (one of width 16 runs at half the rate of the wide ones), so the A of all layers that read
//! one input are a single product, forward and backward, and the input's gradient is added up in place. Nothing is kept
//! that can be made again in the backward for less than it weighs: the narrow copy of a float32 weight, and an input
//! that is a norm's or an activation's result.

use super::linear::{Dense, cast, operand};
use super::ops;
use crate::native;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// What a layer reads, and how to make it again in the backward where that is cheaper than keeping it.
pub struct Input {
    pub x: Tensor,
    again: Option<Rc<dyn Fn() -> Tensor>>,
}

impl Input {
    /// An input that is kept.
    pub fn kept(x: &Tensor) -> Self {
        Self { x: x.shallow_clone(), again: None }
    }

    /// An input that can be made once more, bit for bit. `again` gives what makes it, which must not hold a graph; it is
    /// asked only where something is recorded.
    pub fn recomputable<F: Fn() -> Tensor + 'static>(x: Tensor, again: impl FnOnce() -> F) -> Self {
        let again = native::grad_enabled().then(|| Rc::new(again()) as Rc<dyn Fn() -> Tensor>);
        Self { x, again }
    }
}

/// An update's factors in the dtype of the products, and the masters that learn.
pub struct LowRank<'a> {
    /// (R, in) and (out, R), float32.
    pub masters: [&'a Tensor; 2],
    pub a: Tensor,
    /// Times the update's scale.
    pub b: Tensor,
    pub scale: f64,
}

/// A layer, and its update if it has one.
pub struct Part<'a> {
    pub base: &'a Dense,
    pub update: Option<LowRank<'a>>,
}

impl Part<'_> {
    /// What may learn, in the order in which the backward gives gradients.
    fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        let base = std::iter::once(&self.base.weight).chain(&self.base.bias);
        base.chain(self.update.iter().flat_map(|u| u.masters))
    }
}

/// What a part's backward needs.
struct Saved {
    weight: Tensor,
    bias: Option<Tensor>,
    update: Option<SavedUpdate>,
}

/// What its update's backward needs.
struct SavedUpdate {
    /// Times the scale.
    b: Tensor,
    scale: f64,
    /// Where its numbers begin among the low-rank ones of all parts.
    column: i64,
}

/// The layers' outputs (T, out) for `input` (T, in). `mask` (T, in) is the dropout before the updates.
pub fn products(input: &Input, mask: Option<&Tensor>, parts: &[Part]) -> Vec<Tensor> {
    let x = &input.x;
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(parts.iter().flat_map(Part::leaves)).collect();
    let needs_x = x.requires_grad();
    let learns = parts.iter().any(|p| p.update.is_some() || p.leaves().any(|t| t.requires_grad()));
    let (rows, options) = (x.size()[0], (x.kind(), x.device()));
    let forward = || {
        let factors: Vec<&Tensor> = parts.iter().filter_map(|p| Some(&p.update.as_ref()?.a)).collect();
        let a = match factors[..] {
            [] => None,
            [one] => Some(one.shallow_clone()),
            _ => Some(Tensor::cat(&factors, 0)),
        };
        let masked = mask.map(|m| x * m);
        let low = a.as_ref().map(|a| masked.as_ref().unwrap_or(x).linear(a, None::<&Tensor>)); // (T, R of all)
        let (mut outputs, mut saved, mut column) = (Vec::new(), Vec::new(), 0);
        for Part { base, update } in parts {
            let bias = base.bias.as_ref().map(|b| cast(b, x.kind()));
            let mut y = operand(x, x.kind()).linear(&operand(&base.weight, x.kind()), bias.as_ref()); // (T, out)
            let update = update.as_ref().zip(low.as_ref()).map(|(u, low)| {
                let rank = u.b.size()[1];
                y = y.addmm_(&low.narrow(1, column, rank), &u.b.tr());
                column += rank;
                SavedUpdate { b: u.b.shallow_clone(), scale: u.scale, column: column - rank }
            });
            outputs.push(y);
            saved.push(Saved {
                weight: base.weight.shallow_clone(),
                bias: base.bias.as_ref().map(Tensor::shallow_clone),
                update,
            });
        }
        let read: Option<Rc<dyn Fn() -> Tensor>> = match (masked, &input.again) {
            _ if !learns => None,
            (None, Some(again)) => Some(again.clone()),
            (masked, _) => {
                let kept = masked.unwrap_or_else(|| x.detach());
                Some(Rc::new(move || kept.shallow_clone()))
            }
        };
        let mask = mask.map(Tensor::shallow_clone);
        (outputs, (read, mask, low.zip(a), saved))
    };
    ops::differentiable_many(&inputs, forward, move |(read, mask, low, saved), grads| {
        let filled = |(g, s): (&Option<Tensor>, &Saved)| match g {
            Some(g) => g.shallow_clone(),
            None => Tensor::zeros([rows, s.weight.size()[0]], options),
        };
        let grads: Vec<Tensor> = grads.iter().zip(saved).map(filled).collect();
        let mut g_x: Option<Tensor> = None;
        for (g, s) in grads.iter().zip(saved).filter(|_| needs_x) {
            let weight = operand(&s.weight, options.0);
            g_x = Some(match g_x {
                Some(mut sum) => sum.addmm_(g, &weight),
                None => g.matmul(&weight),
            });
        }
        let x = read.as_ref().map(|read| read()); // masked, where there is a mask: updates stand on a frozen base
        let mut g_a = None;
        if let (Some((_, a)), Some(x)) = (low, &x) {
            let each = grads.iter().zip(saved).filter_map(|(g, s)| Some(g.matmul(&s.update.as_ref()?.b)));
            let g_low = Tensor::cat(&each.collect::<Vec<_>>(), 1); // (T, R of all)
            g_x = g_x.map(|mut g_x| match mask {
                Some(m) => g_x + g_low.matmul(a) * m,
                None => g_x.addmm_(&g_low, a),
            });
            g_a = Some(g_low.tr().matmul(x).to_kind(Kind::Float)); // (R of all, in)
        }
        let mut gradients = vec![g_x];
        for (g, s) in grads.iter().zip(saved) {
            let trained = x.as_ref().filter(|_| s.weight.requires_grad());
            gradients.push(trained.map(|x| g.tr().matmul(x).to_kind(s.weight.kind())));
            gradients.extend(s.bias.as_ref().map(|b| {
                b.requires_grad().then(|| g.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).to_kind(b.kind()))
            }));
            if let (Some(u), Some((low, _)), Some(g_a)) = (&s.update, low, &g_a) {
                let rank = u.b.size()[1];
                let g_b = g.tr().matmul(&low.narrow(1, u.column, rank)).to_kind(Kind::Float) * u.scale;
                gradients.extend([Some(g_a.narrow(0, u.column, rank)), Some(g_b)]);
            }
        }
        gradients
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(Kind::Float)
    }

    fn leaf(shape: &[i64]) -> Tensor {
        random(shape).set_requires_grad(true)
    }

    /// Three layers of one input (T 7, in 6): with rank 2, with none, and with rank 3 and a bias.
    struct Layers {
        x: Tensor,
        dense: [Dense; 3],
        factors: [(Tensor, Tensor, f64); 2],
    }

    impl Layers {
        fn new() -> Self {
            tch::manual_seed(5);
            let dense = |outputs: i64, bias: bool| Dense {
                weight: random(&[outputs, 6]),
                bias: bias.then(|| random(&[outputs])),
            };
            Self {
                x: leaf(&[7, 6]),
                dense: [dense(4, false), dense(5, false), dense(3, true)],
                factors: [(leaf(&[2, 6]), leaf(&[4, 2]), 0.5), (leaf(&[3, 6]), leaf(&[3, 3]), 2.0)],
            }
        }

        fn parts(&self) -> Vec<Part<'_>> {
            let update = |i: usize| {
                let (a, b, scale) = &self.factors[i];
                Some(LowRank { masters: [a, b], a: a.detach(), b: (b * *scale).detach(), scale: *scale })
            };
            let updates = [update(0), None, update(1)];
            self.dense.iter().zip(updates).map(|(base, update)| Part { base, update }).collect()
        }

        /// The same by libtorch's operations.
        fn composed(&self, mask: Option<&Tensor>) -> Vec<Tensor> {
            let masked = mask.map_or_else(|| self.x.shallow_clone(), |m| &self.x * m);
            let factors = [Some(&self.factors[0]), None, Some(&self.factors[1])];
            let one = |(dense, factors): (&Dense, Option<&(Tensor, Tensor, f64)>)| {
                let y = self.x.linear(&dense.weight, dense.bias.as_ref());
                factors.map_or_else(|| y.shallow_clone(), |(a, b, s)| &y + masked.matmul(&a.tr()).matmul(&b.tr()) * *s)
            };
            self.dense.iter().zip(factors).map(one).collect()
        }

        /// Outputs, and the gradients of x and all factors for the sum of the weighed outputs that are `used`.
        fn learn(&self, outputs: Vec<Tensor>, used: &[usize]) -> Vec<Tensor> {
            let loss = used.iter().map(|i| (&outputs[*i] * (&outputs[*i] + 1.0)).sum(Kind::Float));
            loss.reduce(|a, b| a + b).expect("one is used").backward();
            let leaves = std::iter::once(&self.x).chain(self.factors.iter().flat_map(|(a, b, _)| [a, b]));
            outputs.iter().map(Tensor::detach).chain(leaves.map(take_gradient)).collect()
        }
    }

    /// The gradient, zeros where there is none; the leaf is left without.
    fn take_gradient(t: &Tensor) -> Tensor {
        let g = t.grad();
        let taken = if g.defined() { g.copy() } else { t.zeros_like() };
        crate::native::drop_gradients(std::iter::once(t));
        taken
    }

    #[track_caller]
    fn near(a: &[Tensor], b: &[Tensor]) {
        let gap = |(a, b): (&Tensor, &Tensor)| ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).double_value(&[]);
        let worst = a.iter().zip(b).map(gap).fold(0.0, f64::max);
        assert!(a.len() == b.len() && worst < 2e-6, "gap {worst}");
    }

    #[test]
    fn products_equal_their_composition() {
        let layers = Layers::new();
        for used in [&[0, 1, 2][..], &[2], &[1], &[0, 1]] {
            let expected = layers.learn(layers.composed(None), used);
            let found = layers.learn(products(&Input::kept(&layers.x), None, &layers.parts()), used);
            near(&found, &expected);
        }
    }

    #[test]
    fn dropout_is_on_the_way_to_the_updates_alone() {
        let layers = Layers::new();
        let mask = Tensor::rand([7, 6], (Kind::Float, Device::Cpu)).gt(0.4).to_kind(Kind::Float) / 0.6;
        let expected = layers.learn(layers.composed(Some(&mask)), &[0, 2]);
        let found = layers.learn(products(&Input::kept(&layers.x), Some(&mask), &layers.parts()), &[0, 2]);
        near(&found, &expected);
    }

    /// The result and every gradient have the same bits, and the input is made once more for the backward.
    #[test]
    fn an_input_made_again_teaches_the_same() {
        let layers = Layers::new();
        let kept = layers.learn(products(&Input::kept(&layers.x), None, &layers.parts()), &[0, 1, 2]);
        let (made, x) = (Rc::new(std::cell::Cell::new(0)), layers.x.detach());
        let count = made.clone();
        let again = Input::recomputable(layers.x.shallow_clone(), || {
            move || {
                count.set(count.get() + 1);
                x.copy()
            }
        });
        let found = layers.learn(products(&again, None, &layers.parts()), &[0, 1, 2]);
        assert!(kept.iter().zip(&found).all(|(a, b)| a.equal(b)));
        assert_eq!(made.get(), 1);
    }

    /// Weights and biases that learn, one layer whose result nobody uses, and one that is frozen.
    #[test]
    fn trained_layers_learn_as_by_libtorch() {
        tch::manual_seed(6);
        let x = leaf(&[7, 6]);
        let dense = [
            Dense { weight: leaf(&[4, 6]), bias: Some(leaf(&[4])) },
            Dense { weight: leaf(&[5, 6]), bias: None },
            Dense { weight: random(&[3, 6]), bias: Some(leaf(&[3])) },
        ];
        let leaves: Vec<&Tensor> = [&x, &dense[0].weight, &dense[1].weight]
            .into_iter()
            .chain(dense.iter().filter_map(|d| d.bias.as_ref()))
            .collect();
        let learn = |outputs: Vec<Tensor>| -> Vec<Tensor> {
            ((&outputs[0] * &outputs[0]).sum(Kind::Float) + (&outputs[2] * 3.0).sum(Kind::Float)).backward();
            outputs.iter().map(Tensor::detach).chain(leaves.iter().copied().map(take_gradient)).collect()
        };
        let expected = learn(dense.iter().map(|d| x.linear(&d.weight, d.bias.as_ref())).collect());
        let parts: Vec<Part> = dense.iter().map(|base| Part { base, update: None }).collect();
        near(&learn(products(&Input::kept(&x), None, &parts)), &expected);
    }
}
