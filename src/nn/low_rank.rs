//! Products of one input with several frozen weights, each with a low-rank update beside it:
//! `y_i = x W_i^T + bias_i + s_i (m x) A_i^T B_i^T`.
//!
//! Narrow products are slow (one of width 16 runs at half the rate of the wide ones), so the A of all layers that read
//! one input are a single product, forward and backward, and the input's gradient is added up in place.

use super::linear::{Dense, cast};
use super::ops;
use std::rc::Rc;
use tch::Tensor;

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

    /// An input that `again` makes once more, bit for bit; it must not hold a graph.
    pub fn recomputable(x: Tensor, again: impl Fn() -> Tensor + 'static) -> Self {
        Self { x, again: Some(Rc::new(again)) }
    }
}

/// An update's factors in the dtype of the products, and the masters that learn.
pub struct LowRank<'a> {
    /// (R, in) and (out, R).
    pub masters: [&'a Tensor; 2],
    pub a: Tensor,
    /// Times the update's scale.
    pub b: Tensor,
    pub scale: f64,
}

/// A frozen layer, and its update if it has one.
pub struct Part<'a> {
    pub base: &'a Dense,
    pub update: Option<LowRank<'a>>,
}

/// What a part's backward needs.
struct Saved {
    weight: Tensor,
    update: Option<SavedUpdate>,
}

struct SavedUpdate {
    /// Times the scale.
    b: Tensor,
    scale: f64,
    /// Where its numbers begin among the low-rank ones of all parts.
    column: i64,
}

/// The layers' outputs (T, out) for `input` (T, in); at least one has an update. `mask` (T, in) is the dropout before the
/// updates.
pub fn products(input: &Input, mask: Option<&Tensor>, parts: &[Part]) -> Vec<Tensor> {
    let x = &input.x;
    let updates = || parts.iter().filter_map(|p| p.update.as_ref());
    let mut inputs = vec![x];
    inputs.extend(updates().flat_map(|u| u.masters));
    let (needs_x, master) = (x.requires_grad(), inputs[1].kind());
    let forward = || {
        let factors: Vec<&Tensor> = updates().map(|u| &u.a).collect();
        let a = if let [one] = factors[..] { one.shallow_clone() } else { Tensor::cat(&factors, 0) };
        let masked = mask.map(|m| x * m);
        let low = masked.as_ref().unwrap_or(x).linear(&a, None::<&Tensor>); // (T, R of all)
        let (mut outputs, mut saved, mut column) = (Vec::new(), Vec::new(), 0);
        for part in parts {
            let weight = cast(&part.base.weight, x.kind());
            let bias = part.base.bias.as_ref().map(|b| cast(b, x.kind()));
            let mut y = x.linear(&weight, bias.as_ref()); // (T, out)
            let update = part.update.as_ref().map(|u| {
                let rank = u.b.size()[1];
                y = y.addmm_(&low.narrow(1, column, rank), &u.b.tr());
                column += rank;
                SavedUpdate { b: u.b.shallow_clone(), scale: u.scale, column: column - rank }
            });
            outputs.push(y);
            saved.push(Saved { weight, update });
        }
        let read = match (masked, &input.again) {
            (None, Some(again)) => again.clone(),
            (masked, _) => {
                let kept = masked.unwrap_or_else(|| x.detach());
                Rc::new(move || kept.shallow_clone())
            }
        };
        let mask = mask.map(Tensor::shallow_clone);
        (outputs, (read, mask, low, a, saved))
    };
    ops::differentiable_many(&inputs, forward, move |(read, mask, low, a, saved), grads| {
        let mut g_x: Option<Tensor> = None;
        let (mut g_low, mut g_b) = (Vec::new(), Vec::new());
        for (s, g) in saved.iter().zip(grads) {
            let g = match g {
                Some(g) => g.shallow_clone(),
                None => Tensor::zeros([low.size()[0], s.weight.size()[0]], (low.kind(), low.device())),
            };
            if needs_x {
                g_x = Some(match g_x {
                    Some(mut sum) => sum.addmm_(&g, &s.weight),
                    None => g.matmul(&s.weight),
                });
            }
            if let Some(u) = &s.update {
                g_low.push(g.matmul(&u.b)); // (T, R)
                let low = low.narrow(1, u.column, u.b.size()[1]);
                g_b.push(g.tr().matmul(&low).to_kind(master) * u.scale);
            }
        }
        let g_low = if g_low.len() == 1 { g_low.remove(0) } else { Tensor::cat(&g_low, 1) };
        let g_x = g_x.map(|mut g_x| match mask {
            Some(m) => g_x + g_low.matmul(a) * m,
            None => g_x.addmm_(&g_low, a),
        });
        let g_a = g_low.tr().matmul(&read()).to_kind(master); // (R of all, in)
        let mut gradients = vec![g_x];
        for (u, g_b) in saved.iter().filter_map(|s| s.update.as_ref()).zip(g_b) {
            gradients.extend([Some(g_a.narrow(0, u.column, u.b.size()[1])), Some(g_b)]);
        }
        gradients
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

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
            let gradients = leaves.map(|t| {
                let g = t.grad();
                let taken = if g.defined() { g.copy() } else { t.zeros_like() };
                if g.defined() {
                    t.shallow_clone().zero_grad();
                }
                taken
            });
            let gradients: Vec<Tensor> = gradients.collect();
            outputs.iter().map(Tensor::detach).chain(gradients).collect()
        }
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
        let again = Input::recomputable(layers.x.shallow_clone(), move || {
            count.set(count.get() + 1);
            x.copy()
        });
        let found = layers.learn(products(&again, None, &layers.parts()), &[0, 1, 2]);
        assert!(kept.iter().zip(&found).all(|(a, b)| a.equal(b)));
        assert_eq!(made.get(), 1);
    }
}
