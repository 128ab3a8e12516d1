//! Operations of a layer and of the output head, forward and backward.

use super::{KINDS, for_each_kind, in_both_orders, kernels, near, random, tolerance};
use tch::{Device, Kind, Tensor};

/// Returns the numbers in float64, as leaves that collect gradients.
fn wide<const N: usize>(tensors: [&Tensor; N]) -> [Tensor; N] {
    tensors.map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true))
}

#[test]
fn swiglu_equals_libtorch() {
    for_each_kind(|k, kind, place| {
        for shape in [[1, 1], [3, 7], [5, 8], [33, 1536], [2, 2049]] {
            let [gate, up, g] = [random(&shape, kind), random(&shape, kind), random(&shape, kind)].map(|t| place(&t));
            let [a, b] = wide([&gate, &up]);
            let y = a.silu() * &b;
            (&y * g.to_kind(Kind::Double)).sum(Kind::Double).backward();
            let [found, g_gate, g_up] = in_both_orders(|| {
                let (g_gate, g_up) = k.swiglu_backward(&gate, &up, &g);
                [k.swiglu(&gate, &up), g_gate, g_up]
            });
            let most = tolerance(kind);
            near("swiglu", &found, &y, most);
            near("gradient of gate", &g_gate, &a.grad(), most);
            near("gradient of up", &g_up, &b.grad(), most);
        }
    });
}

/// Columns of a wider matrix, as a joint product gives them, are read where they lie.
#[test]
fn swiglu_and_rotation_read_columns_of_a_wider_matrix() {
    tch::manual_seed(12);
    for kind in KINDS {
        let k = kernels(kind);
        for (rows, width) in [(1, 8), (3, 7), (33, 96), (2, 2056)] {
            let (both, g) = (random(&[rows, 2 * width], kind), random(&[rows, width], kind));
            let (gate, up) = (both.narrow(1, 0, width), both.narrow(1, width, width));
            let [y, g_gate, g_up] = in_both_orders(|| {
                let (g_gate, g_up) = k.swiglu_backward(&gate, &up, &g);
                [k.swiglu(&gate, &up), g_gate, g_up]
            });
            let (a, b) = k.swiglu_backward(&gate.contiguous(), &up.contiguous(), &g);
            let plain = k.swiglu(&gate.contiguous(), &up.contiguous());
            assert!(y.equal(&plain) && g_gate.equal(&a) && g_up.equal(&b));
            assert_eq!(
                g_gate.data_ptr() as usize + width as usize * kind.elt_size_in_bytes(),
                g_up.data_ptr() as usize
            );
            assert!(!k.takes_pair(&gate, &up.contiguous()) || rows == 1);
        }
        for (heads, kv, size) in [(4, 2, 16), (3, 1, 6)] {
            let wide = random(&[5, (heads + kv + kv) * size], kind);
            let (cos, sin) = (random(&[5, 1, size / 2], kind), random(&[5, 1, size / 2], kind));
            let part = |t: &Tensor, head, n| t.narrow(1, head * size, n * size).view([5, n, size]);
            let turned = wide.copy();
            k.rotate_in_place(&part(&turned, 0, heads), &part(&turned, heads, kv), &cos, &sin, 1.0);
            let (q, key) = (part(&wide, 0, heads).contiguous(), part(&wide, heads, kv).contiguous());
            let (q, key) = k.rotate(&q, &key, &cos, &sin, 1.0);
            assert!(part(&turned, 0, heads).equal(&q) && part(&turned, heads, kv).equal(&key));
            assert!(part(&turned, heads + kv, kv).equal(&part(&wide, heads + kv, kv)), "values stay");
        }
    }
}

/// Large inputs leave no NaN where the exponential overflows.
#[test]
fn swiglu_saturates() {
    let k = kernels(Kind::Float);
    let gate = Tensor::from_slice(&[-1e30f32, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30]);
    let one = gate.ones_like();
    let y = k.swiglu(&gate, &one);
    near("silu", &y.clamp(-1e3, 1e3), &gate.to_kind(Kind::Double).silu().clamp(-1e3, 1e3), 1e-6);
    let (g_gate, g_up) = k.swiglu_backward(&gate, &one, &one);
    assert!(g_gate.isfinite().all().int64_value(&[]) == 1 && g_up.isfinite().all().int64_value(&[]) == 1);
    near("slope", &g_gate, &Tensor::from_slice(&[0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]), 1e-6);
}

#[test]
fn rotation_equals_libtorch_there_and_back() {
    for_each_kind(|k, kind, place| {
        for (tokens, heads, kv, size) in [(1, 1, 1, 2), (7, 3, 1, 6), (5, 9, 3, 64), (3, 32, 8, 128), (2, 4, 4, 80)] {
            let [q, key] = [[tokens, heads, size], [tokens, kv, size]].map(|shape| place(&random(&shape, kind)));
            let angle = Tensor::randn([tokens, 1, size / 2], (Kind::Float, Device::Cpu)) * 3.0;
            let [cos, sin] = [angle.cos(), angle.sin()].map(|t| place(&t.to_kind(kind)));
            let composed = |t: &Tensor, g: &Tensor| {
                let ([leaf], [cos, sin]) = (wide([t]), [&cos, &sin].map(|t| t.to_kind(Kind::Double)));
                let halves = leaf.chunk(2, -1);
                let first = &halves[0] * &cos - &halves[1] * &sin;
                let y = Tensor::cat(&[first, &halves[1] * &cos + &halves[0] * &sin], -1);
                (&y * g.to_kind(Kind::Double)).sum(Kind::Double).backward();
                (y.detach(), leaf.grad())
            };
            let [g_q, g_k] = [&q, &key].map(|t| place(&random(&t.size(), kind)));
            let ((y_q, gradient_q), (y_k, gradient_k)) = (composed(&q, &g_q), composed(&key, &g_k));
            let found = in_both_orders(|| {
                let ((a, b), (c, d)) = (k.rotate(&q, &key, &cos, &sin, 1.0), k.rotate(&g_q, &g_k, &cos, &sin, -1.0));
                [a, b, c, d]
            });
            let names = ["queries", "keys", "gradient of queries", "gradient of keys"];
            for ((what, found), expected) in names.iter().zip(&found).zip([y_q, y_k, gradient_q, gradient_k]) {
                near(what, found, &expected, tolerance(kind));
            }
        }
    });
}

#[test]
fn rms_norm_equals_libtorch_with_and_without_residual() {
    for_each_kind(|k, kind, place| {
        // The gradient of a row of one number is 0 but for eps, a difference of equal numbers; so none is tested.
        for (rows, width) in [(1, 3), (3, 7), (2, 64), (9, 576), (4, 2056), (70, 33), (1, 4099)] {
            let shape = [rows, width];
            let [x, r, g, g_sum] = [(); 4].map(|()| place(&random(&shape, kind)));
            let w = place(&random(&[width], kind));
            let eps = 1e-5;
            for with_residual in [false, true] {
                let residual = with_residual.then_some(&r);
                let (sum, y, inverse) = k.rms_norm(&x, residual, &w, eps);
                if with_residual {
                    assert!(sum.equal(&(&x + &r)), "the sum is rounded once");
                }
                let [leaf, weight] = wide([&sum, &w]);
                let scale = (leaf.square().mean_dim([-1i64].as_slice(), true, Kind::Double) + eps).rsqrt();
                let expected = &leaf * &scale * &weight;
                let mut loss = (&expected * g.to_kind(Kind::Double)).sum(Kind::Double);
                if with_residual {
                    loss = loss + (&leaf * g_sum.to_kind(Kind::Double)).sum(Kind::Double);
                }
                loss.backward();
                let g_residual = with_residual.then_some(&g_sum);
                let [y_again, g_x, g_w] = in_both_orders(|| {
                    let (g_x, g_w) = k.rms_norm_backward(&sum, &w, &inverse, &g, g_residual, true);
                    [k.rms_norm(&x, residual, &w, eps).1, g_x, g_w.unwrap()]
                });
                let most = tolerance(kind);
                assert!(y_again.equal(&y));
                near("norm", &y, &expected, most);
                near("inverse", &inverse, &scale.reshape([-1]), 1e-5);
                near("gradient", &g_x, &leaf.grad(), most);
                near("gradient of the weight", &g_w, &weight.grad(), 4e-6);
                assert!(k.rms_norm_backward(&sum, &w, &inverse, &g, g_residual, false).1.is_none());
            }
        }
    });
}

#[test]
fn log_probabilities_equal_libtorch() {
    for_each_kind(|k, kind, place| {
        for (rows, vocabulary) in [(1, 1), (3, 7), (5, 1000), (2, 8200), (4, 49152), (2, 151_937)] {
            let logits = random(&[rows, vocabulary], kind) * 4.0;
            let targets = Tensor::randint(vocabulary, [rows], (Kind::Int64, Device::Cpu));
            // One row's target is its largest logit.
            let _ = targets.get(0).copy_(&logits.get(0).argmax(0, false));
            for temperature in [1.0, 0.6] {
                let [leaf] = wide([&logits]);
                let l = (&leaf / temperature).log_softmax(-1, Kind::Double);
                let expected = l.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
                expected.sum(Kind::Double).backward();
                let entropy = -(l.exp() * &l).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
                let [value, hits, found, direction] = in_both_orders(|| {
                    let z = place(&logits.copy());
                    let (value, hits, entropy) = k.head(&z, &targets, temperature, true, true);
                    [value, hits, entropy.unwrap(), z]
                });
                // The sums are float32 whatever the logits' format.
                near("log-probability", &value, &expected, 4e-6);
                near("entropy", &found, &entropy, 2e-5);
                near("direction", &direction, &leaf.grad(), tolerance(kind));
                let first = logits.to_kind(Kind::Double).argmax(-1, false).eq_tensor(&targets);
                assert!(hits.to_kind(Kind::Bool).equal(&first) && hits.double_value(&[0]) == 1.0);
                for (entropy, gradient) in [(false, false), (true, false), (false, true)] {
                    let z = place(&logits.copy());
                    let (alone, _, none) = k.head(&z, &targets, temperature, entropy, gradient);
                    assert!(alone.equal(&value) && none.is_some() == entropy, "what else is asked for changes it");
                    assert!(gradient || z.equal(&logits), "logits are overwritten only by a gradient");
                }
            }
        }
    });
}

/// Of several largest logits the first counts, wherever its thread is.
#[test]
fn a_hit_is_the_first_of_the_largest_logits() {
    let k = kernels(Kind::Float);
    for at in [[3i64, 9], [9, 2000], [1023, 1024], [40, 3000]] {
        let logits = Tensor::zeros([2, 3003], (Kind::Float, Device::Cpu));
        at.iter().for_each(|at| drop(logits.narrow(1, *at, 1).fill_(2.0)));
        let (_, hits, _) = k.head(&logits, &Tensor::from_slice(&at), 1.0, false, false);
        assert_eq!(Vec::<f32>::try_from(hits).unwrap(), [1.0, 0.0], "{at:?}");
    }
}

/// A logit that is NaN or infinite must make the loss non-finite; a maximum over logits must not hide it. So must a
/// target that is no column.
#[test]
fn bad_logits_and_targets_give_no_finite_loss() {
    let k = kernels(Kind::Float);
    for bad in [f64::NAN, f64::INFINITY] {
        let logits = Tensor::zeros([2, 3000], (Kind::Float, Device::Cpu));
        let _ = logits.get(1).get(2040).fill_(bad);
        let (value, ..) = k.head(&logits, &Tensor::from_slice(&[3i64, 3]), 1.0, false, true);
        assert!(value.double_value(&[0]).is_finite() && !value.double_value(&[1]).is_finite());
        assert!(!logits.get(1).sum(Kind::Float).double_value(&[]).is_finite());
    }
    let logits = Tensor::zeros([2, 5], (Kind::Float, Device::Cpu));
    let (value, ..) = k.head(&logits, &Tensor::from_slice(&[5i64, -1]), 1.0, false, true);
    assert!(value.isnan().all().int64_value(&[]) == 1 && logits.isnan().all().int64_value(&[]) == 1);
    // A masked logit is no reason for NaN, not even where a thread sees nothing else.
    let logits = Tensor::full([1, 3000], f64::NEG_INFINITY, (Kind::Float, Device::Cpu));
    let _ = logits.narrow(1, 17, 2).fill_(1.0);
    let (value, _, entropy) = k.head(&logits, &Tensor::from_slice(&[17i64]), 1.0, true, true);
    let two = Tensor::from_slice(&[2f64.ln()]);
    near("half", &value, &-&two, 1e-6);
    near("entropy", &entropy.unwrap(), &two, 1e-6);
    near("direction", &logits.narrow(1, 16, 4), &Tensor::from_slice(&[0.0, 0.5, -0.5, 0.0]).unsqueeze(0), 1e-6);
}
