//! Operations with a hand-written backward: they keep for it only what it needs.

use crate::native;
use tch::{Kind, Tensor};

/// Runs `forward` without recording and, where a gradient will be asked for, joins its result to the graph.
///
/// `forward` returns a fresh tensor (no view of an input) and whatever the backward needs; `backward` gets that and
/// the gradient of the result, and returns one gradient per input (`None` for an input that needs none).
pub fn differentiable<S: 'static>(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> (Tensor, S),
    backward: impl Fn(&S, &Tensor) -> Vec<Option<Tensor>> + 'static,
) -> Tensor {
    let recorded = native::grad_enabled() && inputs.iter().any(|t| t.requires_grad());
    let (out, saved) = {
        let _no_grad = tch::no_grad_guard();
        forward()
    };
    if recorded {
        let n = inputs.len();
        native::attach(inputs, &[&out], move |grads| match &grads[0] {
            Some(g) => backward(&saved, g),
            None => (0..n).map(|_| None).collect(),
        });
    }
    out
}

/// `silu(gate) * up`, elementwise; keeps only its two inputs.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    differentiable(
        &[gate, up],
        || (gate.silu().g_mul_(up), (gate.detach(), up.detach())),
        |(gate, up), g| {
            let silu = gate.silu();
            let g_gate = gate.silu_backward(&(g * up));
            vec![Some(g_gate), Some(silu.g_mul_(g))]
        },
    )
}

/// In-place product that reads as an expression.
trait MulInPlace {
    fn g_mul_(self, by: &Tensor) -> Tensor;
}

impl MulInPlace for Tensor {
    fn g_mul_(mut self, by: &Tensor) -> Tensor {
        let _ = self.multiply_(by);
        self
    }
}

/// Root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467), computed in
/// float32: `y = x / sqrt(mean(x^2) + eps) * weight`. Keeps x and one number a row.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let (train_weight, width) = (weight.requires_grad(), x.size()[x.dim() - 1]);
    differentiable(
        &[x, weight],
        || {
            let wide = x.to_kind(Kind::Float);
            let inverse = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt(); // (…, 1)
            let y = (wide * &inverse).to_kind(x.kind()) * weight;
            (y, (x.detach(), weight.detach(), inverse))
        },
        move |(x, weight, inverse), g| {
            let normal = x.to_kind(Kind::Float) * inverse;
            let g = g.to_kind(Kind::Float);
            let g_weight = train_weight.then(|| {
                let rows: Vec<i64> = (0..g.dim() as i64 - 1).collect();
                (&g * &normal).sum_dim_intlist(rows.as_slice(), false, Kind::Float).to_kind(weight.kind())
            });
            let scaled = g * weight.to_kind(Kind::Float);
            let along = (&scaled * &normal).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float) / width as f64;
            let g_x = ((scaled - normal * along) * inverse).to_kind(x.kind());
            vec![Some(g_x), g_weight]
        },
    )
}

/// Rotates pairs (i, i + E/2) of each head by the angle of its position (Su et al. 2021, arXiv 2104.09864).
/// `x` (T, H, E); `cos` and `sin` (T, 1, E/2). Keeps only the angles.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let first = &halves[0] * cos - &halves[1] * sin;
        let second = &halves[1] * cos + &halves[0] * sin;
        Tensor::cat(&[first, second], -1)
    }
    differentiable(
        &[x],
        || (turn(x, cos, sin), (cos.shallow_clone(), sin.shallow_clone())),
        |(cos, sin), g| vec![Some(turn(g, cos, &sin.neg()))],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn leaf(shape: &[i64], seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(Kind::Float).set_requires_grad(true)
    }

    /// Largest difference between the gradients of two ways to compute the same thing.
    fn gradient_gap(inputs: &[Tensor], a: impl Fn(&[Tensor]) -> Tensor, b: impl Fn(&[Tensor]) -> Tensor) -> f64 {
        let run = |f: &dyn Fn(&[Tensor]) -> Tensor| -> (Tensor, Vec<Tensor>) {
            let y = f(inputs);
            tch::manual_seed(99);
            let weights = Tensor::randn(y.size(), (Kind::Float, Device::Cpu));
            (&y * weights).sum(Kind::Float).backward();
            let grads = inputs
                .iter()
                .map(|t| {
                    let g = t.grad().copy();
                    let mut t = t.shallow_clone();
                    t.zero_grad();
                    g
                })
                .collect();
            (y, grads)
        };
        let ((ya, ga), (yb, gb)) = (run(&a), run(&b));
        let gap = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        ga.iter().zip(&gb).map(|(a, b)| gap(a, b)).fold(gap(&ya, &yb), f64::max)
    }

    #[test]
    fn swiglu_equals_its_composition() {
        let inputs = [leaf(&[5, 7], 1), leaf(&[5, 7], 2)];
        let gap = gradient_gap(&inputs, |t| swiglu(&t[0], &t[1]), |t| t[0].silu() * &t[1]);
        assert!(gap < 1e-6, "gap {gap}");
    }

    #[test]
    fn rms_norm_equals_its_composition() {
        let inputs = [leaf(&[6, 8], 1), leaf(&[8], 2)];
        let plain = |t: &[Tensor]| {
            let mean = t[0].square().mean_dim([-1i64].as_slice(), true, Kind::Float);
            &t[0] * (mean + 1e-5).rsqrt() * &t[1]
        };
        let gap = gradient_gap(&inputs, |t| rms_norm(&t[0], &t[1], 1e-5), plain);
        assert!(gap < 2e-6, "gap {gap}");
    }

    #[test]
    fn rotation_equals_its_composition_and_keeps_length() {
        let x = leaf(&[4, 2, 6], 3);
        let angle = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([4, 1, 3]);
        let (cos, sin) = (angle.cos(), angle.sin());
        let plain = |t: &[Tensor]| {
            let h = t[0].chunk(2, -1);
            let rotated = Tensor::cat(&[h[1].neg(), h[0].shallow_clone()], -1);
            &t[0] * Tensor::cat(&[&cos, &cos], -1) + rotated * Tensor::cat(&[&sin, &sin], -1)
        };
        let gap = gradient_gap(&[x.shallow_clone()], |t| rotate(&t[0], &cos, &sin), plain);
        assert!(gap < 1e-6, "gap {gap}");
        let length = (rotate(&x, &cos, &sin).norm() - x.norm()).double_value(&[]).abs();
        assert!(length < 1e-5);
    }
}
