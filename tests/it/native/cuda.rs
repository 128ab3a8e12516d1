//! Compares the CUDA kernels of native/cuda/ with libtorch's operations, on the CPU: the stand-ins of tests/fake_cuda
//! run the kernels' own text, launched by ft's own code. A kernel runs twice, the second time with its threads in
//! reverse order: other bits would be a data race on a GPU. Where NVRTC is there, the kernels are also compiled for
//! GPUs.

use crate::support::device;
use crate::support::needs::{NVRTC, needs, nvrtc};
use ft::native::cuda::{Cast, Compiler, Kernels, Target, Toolkit};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

/// Returns the allowed gap, relative to the largest number: float32 adds up to thousands of numbers in another order;
/// the narrow formats round twice at most, by half a step each.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::Float => 4e-6,
        Kind::BFloat16 => 8e-3,
        _ => 1e-3,
    }
}

/// Builds the stand-ins for the driver and NVRTC, once; returns their library.
fn stand_ins() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_kernels");
        std::fs::create_dir_all(&folder).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
        let compile = |compiler: &str, options: &[&str], file: &str, object: String| {
            let object = folder.join(object);
            let mut run = Command::new(compiler);
            run.args(options).args(["-fPIC", "-w", "-c"]).arg(source.join(file)).arg("-o").arg(&object);
            assert!(run.status().unwrap().success(), "{file} does not compile");
            object
        };
        let mut objects = vec![
            compile("gcc", &["-O1"], "driver.c", "driver.o".into()),
            compile("g++", &["-std=c++17", "-O1"], "launches.cpp", "launches.o".into()),
        ];
        for number in 0..3 {
            let define = format!("-DFT_NUMBER={number}");
            let options = ["-std=c++17", "-O2", "-ffp-contract=off", &define];
            objects.push(compile("g++", &options, "kernels.cpp", format!("kernels{number}.o")));
        }
        let library = folder.join(format!("libcuda-{}.so", std::process::id()));
        let linked = Command::new("g++").arg("-shared").args(&objects).arg("-o").arg(&library).arg("-ldl").status();
        assert!(linked.unwrap().success());
        library
    })
}

fn toolkit(cache: Option<&Path>) -> Toolkit {
    device();
    let driver = CString::new(stand_ins().as_os_str().as_bytes()).unwrap();
    Toolkit::open(&[stand_ins().into()], &driver, cache.map(PathBuf::from)).unwrap()
}

fn kernels(kind: Kind) -> Kernels {
    toolkit(None).kernels(0, kind).unwrap()
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Returns the same numbers at an address that no pack of numbers may have.
fn displaced(t: &Tensor) -> Tensor {
    let room = Tensor::zeros([t.numel() as i64 + 1], (t.kind(), Device::Cpu));
    let part = room.narrow(0, 1, t.numel() as i64).view(t.size().as_slice());
    part.shallow_clone().copy_(t);
    part
}

/// Returns the numbers in float64, as leaves that collect gradients.
fn wide<const N: usize>(tensors: [&Tensor; N]) -> [Tensor; N] {
    tensors.map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true))
}

#[track_caller]
fn near(what: &str, found: &Tensor, expected: &Tensor, most: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let expected = expected.to_kind(Kind::Double);
    let scale = expected.abs().max().double_value(&[]).max(1e-3);
    let gap = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / scale;
    assert!(gap <= most, "{what}: gap {gap:e}, allowed {most:e}");
}

/// Runs a computation twice, with the threads of its kernels in both orders. Returns its results.
#[track_caller]
fn in_both_orders<const N: usize>(compute: impl Fn() -> [Tensor; N]) -> [Tensor; N] {
    let (first, second) = (compute(), compute());
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        assert!(a.equal(b), "result {i} depends on the order of threads");
    }
    first
}

/// Runs `check` for each dtype with tensors whose rows can and cannot be read in packs.
fn for_each_kind(check: impl Fn(&Kernels, Kind, &dyn Fn(&Tensor) -> Tensor)) {
    tch::manual_seed(11);
    for kind in KINDS {
        let k = kernels(kind);
        check(&k, kind, &Tensor::shallow_clone);
        check(&k, kind, &displaced);
    }
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

/// The sixteen values of NF4, computed from their definition: quantiles of the normal distribution, 8 positive ones and
/// 7 negative ones around an exact zero, scaled to [-1, 1] (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
fn nf4_table() -> Tensor {
    let offset = 0.5 * (1.0 / 32.0 + 1.0 / 30.0);
    let quantiles = |from: f64, to: f64, n: i64| {
        let p = Tensor::linspace(from, to, n, (Kind::Double, Device::Cpu));
        (p * 2.0 - 1.0).erfinv() * 2f64.sqrt()
    };
    let (above, below) =
        (quantiles(1.0 - offset, 0.5, 9).narrow(0, 0, 8), quantiles(1.0 - offset, 0.5, 8).narrow(0, 0, 7));
    let table = Tensor::cat(&[above, -below, Tensor::zeros([1], (Kind::Double, Device::Cpu))], 0).sort(0, false).0;
    &table / table.max()
}

#[test]
fn four_bit_weights_are_dequantised_as_defined() {
    for kind in KINDS {
        let k = kernels(kind);
        for bytes in [1, 32, 33, 4096, 5001] {
            let codes = Tensor::randint(256, [bytes], (Kind::Int64, Device::Cpu));
            let blocks = (2 * bytes + 63) / 64;
            let scales = Tensor::rand([blocks], (Kind::Float, Device::Cpu)) * 3.0;
            let high = codes.divide_scalar_mode(16i64, "floor");
            let indices = Tensor::stack(&[&high, &(&codes - &high * 16)], 1).reshape([-1]);
            let expected = nf4_table().index_select(0, &indices)
                * scales.to_kind(Kind::Double).repeat_interleave_self_int(64, 0, None::<i64>).narrow(0, 0, 2 * bytes);
            let [found] = in_both_orders(|| [k.dequantise_nf4(&codes.to_kind(Kind::Uint8), &scales)]);
            assert_eq!(found.kind(), kind);
            // The published table was computed from float32 probabilities: half a step of 6e-8, times the slope of the
            // quantiles at the ends (13.8 / 1.85), is 2e-7.
            near("NF4", &found, &expected, if kind == Kind::Float { 4e-7 } else { tolerance(kind) / 2.0 });
        }
    }
}

fn plain<'a>(from: &'a Tensor, factor: f64, to: &'a Tensor) -> Cast<'a> {
    Cast { from, to, factor, column: 0 }
}

/// A cast can place a matrix among columns of zeros, and take columns out of a wider one.
#[test]
fn blocks_are_placed_and_taken_out() {
    tch::manual_seed(9);
    for kind in KINDS {
        let k = kernels(kind);
        let (a, b) = (random(&[300, 5], Kind::Float), random(&[7, 11], Kind::Float));
        let both = Tensor::full([307, 16], f64::NAN, (kind, Device::Cpu));
        let (upper, lower) = (both.narrow(0, 0, 300), both.narrow(0, 300, 7));
        let place = |from, to, factor, column| Cast { from, to, factor, column };
        k.narrow_all(&[place(&a, &upper, 2.0, 0), place(&b, &lower, 0.5, 5)]);
        let zeros = |rows: i64, columns: i64| Tensor::zeros([rows, columns], (Kind::Float, Device::Cpu));
        let expected =
            Tensor::cat(&[Tensor::cat(&[&a * 2.0, zeros(300, 11)], 1), Tensor::cat(&[zeros(7, 5), &b * 0.5], 1)], 0);
        assert!(both.equal(&expected.to_kind(kind)));
        let (x, y) = (zeros(300, 5), zeros(7, 11));
        k.widen_all(&[place(&upper, &x, 3.0, 0), place(&lower, &y, 1.0, -5)]);
        assert!(x.equal(&(upper.narrow(1, 0, 5).to_kind(Kind::Float) * 3.0)));
        assert!(y.equal(&lower.narrow(1, 5, 11).to_kind(Kind::Float)));
    }
}

/// The formats' conversions have libtorch's bits, for every kind of number.
#[test]
fn casts_round_as_libtorch_does() {
    let bits = Tensor::arange(1 << 16, (Kind::Int64, Device::Cpu)).to_kind(Kind::Int16);
    for kind in KINDS {
        let k = kernels(kind);
        let every = if kind == Kind::Float { random(&[1 << 16], kind) } else { bits.view_dtype(kind) };
        let found = Tensor::empty([1 << 16], (Kind::Float, Device::Cpu));
        k.widen_all(&[plain(&every, 1.0, &found)]);
        let expected = every.to_kind(Kind::Float);
        let both_nan = expected.isnan().logical_and(&found.isnan());
        assert!(found.eq_tensor(&expected).logical_or(&both_nan).all().int64_value(&[]) == 1, "{kind:?}");
        // Values of the format, and what lies a quarter, a half and three quarters of the way to their neighbours.
        let steps = [0.0, 0.25, 0.5, 0.75].map(|part| {
            let next = expected.roll([1i64].as_slice(), [0i64].as_slice());
            &expected + (next - &expected) * part
        });
        let extremes = Tensor::from_slice(&[65519.9f32, 65520.0, 1e30, -1e30, 1e-40, 3e-8, 2.98e-8, 5.9e-8, f32::MAX]);
        let numbers = Tensor::cat(&steps.iter().chain([&extremes]).collect::<Vec<_>>(), 0);
        let narrow = Tensor::empty([numbers.size()[0]], (kind, Device::Cpu));
        k.narrow_all(&[plain(&numbers, 1.0, &narrow)]);
        let expected = numbers.to_kind(kind);
        let both_nan = expected.isnan().logical_and(&narrow.isnan());
        assert!(narrow.eq_tensor(&expected).logical_or(&both_nan).all().int64_value(&[]) == 1, "{kind:?}");
    }
}

/// Many tensors of different sizes are cast at once, more than one launch takes.
#[test]
fn many_tensors_are_cast_each_by_its_factor() {
    tch::manual_seed(4);
    for kind in KINDS {
        let k = kernels(kind);
        let sizes = (0..37).map(|i| [1, 700, 1024, 1025, 5000][i % 5] + i as i64);
        let masters: Vec<Tensor> = sizes.map(|n| random(&[n], Kind::Float)).collect();
        let results: Vec<Tensor> = masters.iter().map(|t| Tensor::empty(t.size(), (kind, Device::Cpu))).collect();
        let factor = |i: usize| 0.5 + i as f64;
        let casts: Vec<_> =
            masters.iter().zip(&results).enumerate().map(|(i, (a, b))| plain(a, factor(i), b)).collect();
        k.narrow_all(&casts);
        for (i, (a, b)) in masters.iter().zip(&results).enumerate() {
            assert!(b.equal(&(a * factor(i)).to_kind(kind)), "tensor {i}");
        }
        let back: Vec<Tensor> = masters.iter().map(Tensor::empty_like).collect();
        k.widen_all(&results.iter().zip(&back).map(|(a, b)| plain(a, 3.0, b)).collect::<Vec<_>>());
        for (a, b) in results.iter().zip(&back) {
            assert!(b.equal(&(a.to_kind(Kind::Float) * 3.0)));
        }
    }
}

/// Compiled kernels are read from the cache; a damaged file is compiled again and replaced.
#[test]
fn compiled_kernels_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("kernels");
    let files = || -> Vec<PathBuf> {
        let mut found: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let use_them = |kind| {
        let x = random(&[3, 8], kind);
        near("swiglu", &toolkit(Some(&cache)).kernels(0, kind).unwrap().swiglu(&x, &x), &(x.silu() * &x), 8e-3);
    };
    use_them(Kind::Float);
    assert_eq!(files().len(), 1);
    let (file, image) = (files()[0].clone(), std::fs::read(&files()[0]).unwrap());
    let marked = [&image[..image.len() - 1], b" kept\0"].concat();
    std::fs::write(&file, &marked).unwrap();
    use_them(Kind::Float);
    assert_eq!(std::fs::read(&file).unwrap(), marked, "the file is not written again");
    for damage in [&b""[..], b"\0", &image[..5]] {
        std::fs::write(&file, damage).unwrap();
        use_them(Kind::Float);
        assert_eq!(std::fs::read(&file).unwrap(), image);
    }
    use_them(Kind::BFloat16);
    assert_eq!(files().len(), 2, "one file for each format");
    // A folder that cannot be written is no reason to fail.
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    assert!(toolkit(Some(&blocked.join("kernels"))).kernels(0, Kind::Float).is_ok());
}

#[test]
fn what_is_missing_is_named() {
    let driver = CString::new(stand_ins().as_os_str().as_bytes()).unwrap();
    let why = |nvrtc: &[PathBuf], driver: &CString| Toolkit::open(nvrtc, driver, None).err().unwrap();
    assert!(why(&["/nonexistent/libnvrtc.so.13".into()], &driver).contains("NVRTC"));
    let no_driver = why(&[stand_ins().into()], &CString::new("/nonexistent/libcuda.so.1").unwrap());
    assert!(no_driver.contains("driver"), "{no_driver}");
    let compiler = Compiler::open(&[stand_ins().into()]).unwrap();
    assert_eq!(compiler.target(90), Ok(Target::Device(90)));
    assert_eq!(compiler.target(121), Ok(Target::Virtual(100)), "newer than the compiler: compiled by the driver");
    let old = compiler.target(61).unwrap_err();
    assert!(old.contains("6.1"), "{old}");
}

/// The real compiler accepts the kernels for the GPUs that are in use, and keeps everything in registers.
#[test]
fn nvrtc_compiles_every_kernel_without_spills() {
    needs!(NVRTC);
    let compiler = Compiler::open(&nvrtc()).unwrap();
    for capability in [80, 89, 90] {
        for kind in KINDS {
            let (image, log) = compiler.compile(Target::Device(capability), kind).unwrap();
            assert!(image.starts_with(b"\x7fELF") && image.len() > 10_000);
            let count = |text: &str| log.matches(text).count();
            assert!(!log.contains("warning"), "sm_{capability} {kind:?}: {log}");
            assert_eq!(count("Compiling entry function"), 10, "{log}");
            assert_eq!(count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"), 10, "{log}");
        }
    }
    let (ptx, _) = compiler.compile(Target::Virtual(80), Kind::BFloat16).unwrap();
    let ptx = String::from_utf8(ptx).unwrap();
    assert!(ptx.contains(".target sm_80"));
    // Eight numbers of two bytes are loaded and stored by one instruction.
    let body = ptx.split(".entry swiglu(").nth(1).unwrap().split(".entry").next().unwrap();
    assert!(body.contains("ld.global.v4") && body.contains("st.global.v4"), "{body}");
}
