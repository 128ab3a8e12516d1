//! Operations with a hand-written backward, which keep less memory for it than libtorch's autograd would.
//!
//! On the CPU each is one pass of our own loops (`native::kernels`), on CUDA one launch of our own kernels
//! (`native::cuda`); elsewhere it is composed of libtorch's operations.

use super::autograd::{differentiable, differentiable_many, recorded};
use super::awaited_update;
use super::gradient_room;
use super::layer_input::LayerInput;
use crate::native::{cuda, kernels};
use tch::{Kind, Tensor};

/// Computes `silu(gate) * up`, elementwise. Keeps only its two inputs for the backward.
fn swiglu_values(gate: &Tensor, up: &Tensor) -> Tensor {
    let own = |gate: &Tensor, up: &Tensor| {
        cuda::kernels(gate.device(), gate.kind()).filter(|kernels| kernels.takes_pair(gate, up))
    };
    let forward = || match own(gate, up) {
        Some(kernels) => kernels.swiglu(gate, up),
        None if kernels::supports(&[gate, up]) => kernels::best().swiglu(gate, up),
        None => gate.silu() * up,
    };
    // Decoding makes many short calls, in which preparing a backward would take as long as the computation.
    if !recorded(&[gate, up]) {
        return forward();
    }
    differentiable(
        &[gate, up],
        || (forward(), (gate.detach(), up.detach())),
        move |(gate, up), g| {
            let g = g.contiguous();
            let gradients = match own(gate, up) {
                Some(kernels) => {
                    let (g_gate, g_up) = kernels.swiglu_backward(gate, up, &g);
                    if let [_, width] = g_gate.size()[..] {
                        gradient_room::offer(&g_gate, 2 * width);
                    }
                    Some((g_gate, g_up))
                }
                None => kernels::supports(&[gate, up, &g]).then(|| kernels::best().swiglu_backward(gate, up, &g)),
            };
            if let Some((g_gate, g_up)) = gradients {
                return vec![Some(g_gate), Some(g_up)];
            }
            let g_gate = gate.silu_backward(&(&g * up));
            vec![Some(g_gate), Some(gate.silu() * g)]
        },
    )
}

/// Computes `silu(gate) * up`, elementwise, as a layer's input that the backward recomputes.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> LayerInput {
    LayerInput::recomputable(swiglu_values(gate, up), || {
        let kept = (gate.detach(), up.detach());
        move || swiglu_values(&kept.0, &kept.1)
    })
}

/// Computes GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415) as a layer's input that the backward
/// recomputes. Keeps its input.
pub fn gelu(x: &Tensor) -> LayerInput {
    LayerInput::recomputable(x.gelu("tanh"), || {
        let kept = x.detach();
        move || kept.gelu("tanh")
    })
}

/// Computes GELU as defined by the error function, as a layer's input that the backward recomputes. Keeps its input.
pub fn gelu_exact(x: &Tensor) -> LayerInput {
    LayerInput::recomputable(x.gelu("none"), || {
        let kept = x.detach();
        move || kept.gelu("none")
    })
}

/// Computes `gelu(gate) * up`, elementwise, by the tanh form of GELU, or by the error function if `exact`, as a layer's
/// input that the backward recomputes (GEGLU: Shazeer 2020, arXiv 2002.05202).
pub fn geglu(gate: &Tensor, up: &Tensor, exact: bool) -> LayerInput {
    let form = if exact { "none" } else { "tanh" };
    let compute = move |gate: &Tensor, up: &Tensor| gate.gelu(form) * up;
    LayerInput::recomputable(compute(gate, up), || {
        let kept = (gate.detach(), up.detach());
        move || compute(&kept.0, &kept.1)
    })
}

/// Returns the rows `ids` (T) of a table (V, D): (T, D).
pub fn embedding_rows(table: &Tensor, ids: &Tensor) -> Tensor {
    Tensor::embedding(table, ids, -1, false, false)
}

/// Computes root-mean-square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467) in
/// float32: `y = x / sqrt(mean(x^2) + eps) * weight`. Keeps x and one number per row for the backward. A float32 weight
/// scales narrower numbers before they are rounded.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let train_weight = weight.requires_grad();
    let x = &if cuda::kernels_for_rows(&[x, weight]).is_some() { x.shallow_clone() } else { x.contiguous() };
    let own = cuda::kernels_for_rows(&[x, weight]);
    let forward = || {
        if let Some(kernels) = own {
            let (_, y, inverse) = kernels.rms_norm(x, None, weight, eps);
            return (y, inverse);
        }
        if kernels::supports(&[x, weight]) {
            return kernels::best().rms_norm(x, weight, eps);
        }
        if x.device().is_cuda() && x.kind() == weight.kind() {
            return x.internal_fused_rms_norm([x.size()[x.dim() - 1]], Some(weight), eps);
        }
        let wide = x.to_kind(Kind::Float);
        let inverse = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt(); // (…, 1)
        let y = match weight.kind() == x.kind() {
            true => (wide * &inverse).to_kind(x.kind()) * weight,
            false => (wide * &inverse * weight).to_kind(x.kind()),
        };
        (y, inverse)
    };
    if !recorded(&[x, weight]) {
        return forward().0;
    }
    differentiable(
        &[x, weight],
        || {
            let (y, inverse) = forward();
            (y, (x.detach(), weight.detach(), inverse))
        },
        move |(x, weight, inverse), g| {
            let (g_x, g_weight) = rms_norm_backward(x, weight, inverse, g, None, train_weight);
            vec![Some(g_x), g_weight]
        },
    )
}

/// Computes the [`rms_norm`] of x (…, D), and returns x itself before it: what is added to that x later and the norm have one gradient
/// of x. On CUDA that is one launch, with the bits of [`add_rms_norm`]'s.
pub fn rms_norm_beside(x: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let Some(kernels) = cuda::kernels_for_rows(&[x, weight]).filter(|_| recorded(&[x, weight])) else {
        return (x.shallow_clone(), rms_norm(x, weight, eps));
    };
    let train_weight = weight.requires_grad();
    let mut results = differentiable_many(
        &[x, weight],
        || {
            let (_, normal, inverse) = kernels.rms_norm(x, None, weight, eps);
            (vec![x.detach(), normal], (x.detach(), weight.detach(), inverse))
        },
        move |(x, weight, inverse), grads| {
            let (g_x, g_weight) = gradients_beside(x, weight, inverse, grads, train_weight);
            vec![Some(g_x), g_weight]
        },
    );
    let normal = results.pop().expect("two results");
    (results.remove(0), normal)
}

/// Computes `x + y` and its [`rms_norm`]: of (…, D) each. On CUDA that is one launch, and so is the backward. If the rows of y
/// are parts of wider ones there, the sum takes its place. An update that y awaits is added in the same launch.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let Some(kernels) = cuda::kernels_for_rows(&[x, y, weight]).filter(|_| x.size() == y.size()) else {
        let sum = add(x, y);
        let normal = rms_norm(&sum, weight, eps);
        return (sum, normal);
    };
    let update = awaited_update::take(y);
    let train_weight = weight.requires_grad();
    let mut results = differentiable_many(
        &[x, y, weight],
        || {
            let (sum, normal, inverse) = kernels.add_rms_norm(x, Some(y), update.as_ref(), weight, eps);
            let saved = (sum.detach(), weight.detach(), inverse);
            (vec![sum, normal], saved)
        },
        move |(sum, weight, inverse), grads| {
            let (g_sum, g_weight) = gradients_beside(sum, weight, inverse, grads, train_weight);
            vec![Some(g_sum.shallow_clone()), Some(g_sum), g_weight]
        },
    );
    let normal = results.pop().expect("two results");
    (results.remove(0), normal)
}

/// Computes `x + y`, of (…, D) each, with the update that y awaits.
pub fn add(x: &Tensor, y: &Tensor) -> Tensor {
    let Some(update) = awaited_update::take(y) else { return x + y };
    let Some(kernels) = cuda::kernels_for_rows(&[x, y]).filter(|_| x.size() == y.size()) else {
        let _ = tch::no_grad(|| y.detach().addmm_(&update.low, &update.b.tr()));
        return x + y;
    };
    let sum = || (kernels.add_update(x, y, &update), ());
    differentiable(&[x, y], sum, |(), g| vec![Some(g.shallow_clone()), Some(g.shallow_clone())])
}

/// Returns the gradients of x and, if it is trained, of the weight, given those of x itself and of its norm, of which there is one at
/// least.
fn gradients_beside(
    x: &Tensor,
    weight: &Tensor,
    inverse: &Tensor,
    grads: &[Option<Tensor>],
    train_weight: bool,
) -> (Tensor, Option<Tensor>) {
    match &grads[1] {
        Some(g) => rms_norm_backward(x, weight, inverse, g, grads[0].as_ref(), train_weight),
        None => (grads[0].as_ref().expect("a result with a gradient").shallow_clone(), None),
    }
}

/// Returns the gradient of x, plus `residual` if there is one, and that of the weight if it is trained, given the
/// gradient `g` of the norm.
fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    inverse: &Tensor,
    g: &Tensor,
    residual: Option<&Tensor>,
    train_weight: bool,
) -> (Tensor, Option<Tensor>) {
    let g = g.contiguous();
    if let Some(kernels) = cuda::kernels_for_rows(&[x, weight, &g]) {
        let rows = |t: &Tensor| if cuda::row_stride(t).is_some() { t.shallow_clone() } else { t.contiguous() };
        let residual = residual.map(rows);
        let (g_x, g_weight) = kernels.rms_norm_backward(x, weight, inverse, &g, residual.as_ref(), train_weight);
        if let [_, width] = g_x.size()[..] {
            gradient_room::offer(&g_x, width);
        }
        return (g_x, g_weight.map(|g| g.to_kind(weight.kind())));
    }
    let plus = |g_x: Tensor| residual.map_or_else(|| g_x.shallow_clone(), |residual| residual + &g_x);
    if kernels::supports(&[x, weight, &g]) {
        let (g_x, g_weight) = kernels::best().rms_norm_backward(x, weight, inverse, &g, train_weight);
        return (plus(g_x), g_weight.map(|g| g.to_kind(weight.kind())));
    }
    let width = x.size()[x.dim() - 1];
    let normal = x.to_kind(Kind::Float) * inverse;
    let g = g.to_kind(Kind::Float);
    let g_weight = train_weight.then(|| {
        let rows: Vec<i64> = (0..g.dim() as i64 - 1).collect();
        (&g * &normal).sum_dim_intlist(rows.as_slice(), false, Kind::Float).to_kind(weight.kind())
    });
    let scaled = g * weight.to_kind(Kind::Float);
    let along = (&scaled * &normal).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float) / width as f64;
    (plus(((scaled - normal * along) * inverse).to_kind(x.kind())), g_weight)
}

/// Rotates pairs (i, i + E/2) of each head by the angle of its position (Su et al. 2021, arXiv 2104.09864).
/// `x` (T, H, E); `cos` and `sin` (T, 1, E/2). Keeps only cos and sin for the backward.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    if !recorded(&[x]) {
        return turn(x, cos, sin, false);
    }
    differentiable(
        &[x],
        || (turn(x, cos, sin, false), (cos.shallow_clone(), sin.shallow_clone())),
        |(cos, sin), g| vec![Some(turn(g, cos, sin, true))],
    )
}

fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor, back: bool) -> Tensor {
    let x = x.contiguous();
    if kernels::supports(&[&x, cos, sin]) {
        return kernels::best().rotate(&x, cos, sin, if back { -1.0 } else { 1.0 });
    }
    if x.device().is_cuda() {
        return turn_pairs(&x, cos, sin, back);
    }
    let halves = x.chunk(2, -1);
    let (a, b) = (&halves[0] * cos, &halves[1] * cos);
    let (c, d) = (&halves[1] * sin, &halves[0] * sin);
    Tensor::cat(&if back { [a + c, b - d] } else { [a - c, b + d] }, -1)
}

/// Computes [`rotate`], or with `back` its gradient, in as few operations as libtorch allows.
fn turn_pairs(x: &Tensor, cos: &Tensor, sin: &Tensor, back: bool) -> Tensor {
    let size = x.size();
    let pairs = x.view([size[0], size[1], 2, size[2] / 2]);
    let turned = &pairs * cos.unsqueeze(2);
    let minus = sin.neg();
    let (first, second) = if back { (sin, &minus) } else { (&minus, sin) };
    let _ = turned.select(2, 0).addcmul_(&pairs.select(2, 1), first);
    let _ = turned.select(2, 1).addcmul_(&pairs.select(2, 0), second);
    turned.view(size.as_slice())
}

/// Computes [`rotate`] of queries (T, H, E) and keys (T, K, E). On CUDA that is one launch, which overwrites q and k,
/// and so is the backward.
pub fn rotate_both(q: Tensor, k: Tensor, cos: &Tensor, sin: &Tensor) -> (Tensor, Tensor) {
    let Some(kernels) = rotation_kernels([&q, &k], cos, sin) else {
        return (rotate(&q, cos, sin), rotate(&k, cos, sin));
    };
    let sizes = [q.size(), k.size()];
    let turned = differentiable_many(
        &[&q, &k],
        || {
            kernels.rotate_in_place(&q, &k, cos, sin, 1.0);
            (vec![q.detach(), k.detach()], (cos.shallow_clone(), sin.shallow_clone()))
        },
        move |(cos, sin), grads| {
            let [g_q, g_k] = std::array::from_fn(|i| filled(&grads[i], &sizes[i], cos));
            let (g_q, g_k) = kernels.rotate(&g_q, &g_k, cos, sin, -1.0);
            vec![Some(g_q), Some(g_k)]
        },
    );
    let [q, k] = turned.try_into().expect("two results");
    (q, k)
}

/// Does the same to queries and keys that were computed together with values (T, K, E), which stay as they are. On CUDA
/// the backward, one launch, returns the three gradients side by side in one matrix, as the layers that computed them
/// together read them.
pub fn rotate_beside(q: Tensor, k: Tensor, v: Tensor, cos: &Tensor, sin: &Tensor) -> [Tensor; 3] {
    let own = rotation_kernels([&q, &k], cos, sin).filter(|_| v.kind() == cos.kind());
    let Some(kernels) = own.filter(|_| recorded(&[&q, &k, &v])) else {
        let (q, k) = rotate_both(q, k, cos, sin);
        return [q, k, v];
    };
    let sizes = [q.size(), k.size(), v.size()];
    let (width, row) = (sizes.iter().map(|size| size[1] * size[2]).sum::<i64>(), q.stride()[0]);
    let turned = differentiable_many(
        &[&q, &k, &v],
        || {
            kernels.rotate_in_place(&q, &k, cos, sin, 1.0);
            (vec![q.detach(), k.detach(), v.detach()], (cos.shallow_clone(), sin.shallow_clone()))
        },
        move |(cos, sin), grads| {
            let grads: [Tensor; 3] = std::array::from_fn(|i| filled(&grads[i], &sizes[i], cos));
            let turned = kernels.rotate_beside(grads.each_ref(), cos, sin, -1.0, row);
            gradient_room::offer(&turned[0], width);
            turned.map(Some).into()
        },
    );
    turned.try_into().expect("three results")
}

/// Returns the kernels that rotate queries and keys by these angles.
fn rotation_kernels(parts: [&Tensor; 2], cos: &Tensor, sin: &Tensor) -> Option<&'static cuda::Kernels> {
    cuda::kernels_for(&[cos, sin]).filter(|_| parts.iter().all(|t| t.kind() == cos.kind()))
}

/// Returns a contiguous gradient of this size; zeros if there is none.
fn filled(g: &Option<Tensor>, size: &[i64], like: &Tensor) -> Tensor {
    match g {
        Some(g) => g.contiguous(),
        None => Tensor::zeros(size, (like.kind(), like.device())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn leaf(shape: &[i64], seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(Kind::Float).set_requires_grad(true)
    }

    /// Returns the largest difference between two ways to compute the same thing, over results and gradients.
    fn gradient_gap(inputs: &[Tensor], a: impl Fn(&[Tensor]) -> Tensor, b: impl Fn(&[Tensor]) -> Tensor) -> f64 {
        let run = |f: &dyn Fn(&[Tensor]) -> Tensor| -> (Tensor, Vec<Tensor>) {
            let y = f(inputs);
            // Fixed weights instead of random ones: all tests of the process share one random generator.
            let weights = Tensor::arange(y.numel() as i64, (Kind::Float, Device::Cpu)).sin().view_as(&y);
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
        let gap = gradient_gap(&inputs, |t| swiglu(&t[0], &t[1]).x, |t| t[0].silu() * &t[1]);
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

    /// Compares every build of the loops with libtorch's operations, in float32 and bfloat16, on more rows than one
    /// thread gets.
    #[test]
    fn every_build_of_the_loops_equals_the_composition() {
        let random = |shape: &[i64], kind| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
        let gap = |a: &Tensor, b: &Tensor| {
            let b = b.to_kind(Kind::Double);
            let scale = b.abs().max().double_value(&[]).max(1.0);
            (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]) / scale
        };
        tch::manual_seed(3);
        for k in kernels::available() {
            for (kind, most) in [(Kind::Float, 2e-6), (Kind::BFloat16, 9e-3)] {
                let near = |what: &str, a: &Tensor, b: &Tensor| {
                    let gap = gap(a, b);
                    assert!(gap <= most, "{} {kind:?} {what}: {gap}", k.name());
                };
                let (x, w, g) = (random(&[300, 67], kind), random(&[67], kind), random(&[300, 67], kind));
                let [wx, ww, wg] = [&x, &w, &g].map(|t| t.to_kind(Kind::Double));
                let inverse = (wx.square().mean_dim([-1i64].as_slice(), true, Kind::Double) + 1e-5).rsqrt();
                let (y, kept) = k.rms_norm(&x, &w, 1e-5);
                near("rms_norm", &y, &(&wx * &inverse * &ww));
                let (gx, gw) = k.rms_norm_backward(&x, &w, &kept, &g, true);
                let (normal, scaled) = (&wx * &inverse, &wg * &ww);
                let along = (&scaled * &normal).mean_dim([-1i64].as_slice(), true, Kind::Double);
                near("rms_norm gradient", &gx, &((scaled - &normal * along) * &inverse));
                near("rms_norm weight", &gw.unwrap(), &(&wg * &normal).sum_dim_intlist([0i64].as_slice(), false, None));

                let up = random(&[300, 67], kind);
                let wu = up.to_kind(Kind::Double);
                near("swiglu", &k.swiglu(&x, &up), &(wx.silu() * &wu));
                let (ga, gu) = k.swiglu_backward(&x, &up, &g);
                near("swiglu gate", &ga, &wx.silu_backward(&(&wg * &wu)));
                near("swiglu up", &gu, &(wx.silu() * &wg));

                let (heads, angle) = (random(&[50, 3, 10], kind), random(&[50, 1, 5], Kind::Float));
                let (cos, sin) = (angle.cos().to_kind(kind), angle.sin().to_kind(kind));
                let back = k.rotate(&k.rotate(&heads, &cos, &sin, 1.0), &cos, &sin, -1.0);
                let length = cos.to_kind(Kind::Double).square() + sin.to_kind(Kind::Double).square();
                let length = Tensor::cat(&[&length, &length], -1); // not exactly 1, because cos and sin are rounded
                near("rotation there and back", &back, &(heads.to_kind(Kind::Double) * length));

                let logits = random(&[40, 501], kind) * 4.0;
                let targets = Tensor::randint(501, [40], (Kind::Int64, Device::Cpu));
                let log_p = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
                let hit = logits.argmax(-1, false).eq_tensor(&targets);
                let onehot = targets.one_hot(501).to_kind(Kind::Double);
                let cooler = (logits.to_kind(Kind::Double) / 0.6).log_softmax(-1, Kind::Double);
                let (value, _, entropy) = k.head(&logits, &targets, 0.6, true, false);
                near("at a temperature", &value, &cooler.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1));
                let expected = -(cooler.exp() * &cooler).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
                near("entropy", &entropy.unwrap(), &expected);
                let (alone, _, none) = k.head(&logits, &targets, 0.6, false, false);
                assert!(alone.equal(&value) && none.is_none(), "{}: asking for the entropy changes it", k.name());
                let (plain, _, _) = k.head(&logits, &targets, 1.0, false, false);
                let (value, hits, _) = k.head(&logits, &targets, 1.0, false, true);
                assert!(plain.equal(&value), "{}: the gradient changes the log-probability", k.name());
                near("log-probability", &value, &log_p.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1));
                near("direction", &logits, &(onehot - log_p.exp()));
                assert!(hits.to_kind(Kind::Bool).equal(&hit));

                let s = random(&[6, 9, 9], kind);
                let hidden = Tensor::ones([9, 9], (Kind::Bool, Device::Cpu)).triu(1);
                let masked = (s.to_kind(Kind::Double) * 0.3).masked_fill(&hidden, f64::NEG_INFINITY);
                let lse = masked.logsumexp([-1i64].as_slice(), false);
                let p = masked.softmax(-1, Kind::Double);
                k.probabilities(&s, &lse.to_kind(Kind::Float), 0.3);
                near("probabilities", &s, &p);
                let (gp, y, gy) = (random(&[6, 9, 9], kind), random(&[6, 9, 4], kind), random(&[6, 9, 4], kind));
                let dot = (gy.to_kind(Kind::Double) * y.to_kind(Kind::Double)).sum_dim_intlist(
                    [-1i64].as_slice(),
                    true,
                    None,
                );
                let expected = (gp.to_kind(Kind::Double) - dot) * &p * 0.3;
                k.score_gradient(&gp, &s, &gy, &y, 0.3);
                near("gradient of the scores", &gp, &expected);
            }
        }
    }

    /// A logit that is NaN or infinite must make the loss non-finite; a maximum over logits must not hide it.
    #[test]
    fn logits_that_are_not_finite_give_no_finite_loss() {
        for bad in [f64::NAN, f64::INFINITY] {
            for k in kernels::available() {
                let logits = Tensor::zeros([2, 70], (Kind::Float, Device::Cpu));
                let _ = logits.get(1).get(40).fill_(bad);
                let (value, ..) = k.head(&logits, &Tensor::from_slice(&[3i64, 3]), 1.0, false, true);
                assert!(value.double_value(&[0]).is_finite() && !value.double_value(&[1]).is_finite(), "{}", k.name());
                assert!(!logits.get(1).sum(Kind::Float).double_value(&[]).is_finite());
            }
        }
    }
}
