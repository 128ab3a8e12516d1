//! Numbers in other formats: casts of many tensors at once, and weights in four bits.

use super::{KINDS, for_each_kind, in_both_orders, kernels, random, tolerance};
use ft::native::cuda::Cast;
use tch::{Device, Kind, Tensor};

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
            let scales = Tensor::rand([blocks], (Kind::Float, Device::Cpu)) * 2.5 + 0.5;
            let high = codes.divide_scalar_mode(16i64, "floor");
            let indices = Tensor::stack(&[&high, &(&codes - &high * 16)], 1).reshape([-1]);
            let expected = nf4_table().index_select(0, &indices)
                * scales.to_kind(Kind::Double).repeat_interleave_self_int(64, 0, None::<i64>).narrow(0, 0, 2 * bytes);
            let [found] = in_both_orders(|| [k.dequantise_nf4(&codes.to_kind(Kind::Uint8), &scales)]);
            assert_eq!(found.kind(), kind);
            // The published table was computed from float32 probabilities: half a step of 6e-8, times the slope of the
            // quantiles at the ends (13.8 / 1.85), is 2e-7 of the scale, however small the numbers of a block are.
            let gap = (found.to_kind(Kind::Double) - &expected).abs().max() / scales.max();
            let (gap, most) = (gap.double_value(&[]), if kind == Kind::Float { 4e-7 } else { tolerance(kind) / 2.0 });
            assert!(gap <= most, "NF4 in {kind:?}: {gap:e} of the scale, allowed {most:e}");
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

/// Rows are rounded to FP8 with libtorch's bits: every number of the format, what lies between neighbours, and what is not finite.
#[test]
fn rows_are_rounded_to_fp8_as_libtorch_does() {
    tch::manual_seed(8);
    let codes = Tensor::arange(0x78, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8); // below 256
    let values = codes.view_dtype(Kind::Float8e4m3fn).to_kind(Kind::Float);
    let steps = [0.0, 0.25, 0.5, 0.75].map(|part| {
        let next = values.roll([1i64].as_slice(), [0i64].as_slice());
        &values + (next - &values) * part
    });
    let numbers = Tensor::cat(&steps, 0).view([1, 480]);
    let sizes = Tensor::from_slice(&[1f32, -1.0, 64.0, 0.0625, 0.0]).unsqueeze(-1);
    for_each_kind(|k, kind, place| {
        let random = random(&[3, 480], Kind::Float) * Tensor::from_slice(&[1f32, 1e-3, 200.0]).unsqueeze(-1);
        let mut broken = Tensor::ones([2, 480], (Kind::Float, Device::Cpu));
        let _ = broken.get(0).get(7).fill_(f64::INFINITY);
        let _ = broken.get(1).get(479).fill_(f64::NAN);
        broken = -broken;
        let x = place(&Tensor::cat(&[&numbers * &sizes, random, broken], 0).to_kind(kind));
        let [found, scales] = {
            let (codes, scales) = k.round_rows(&x);
            let again = k.round_rows(&x);
            assert!(codes.view_dtype(Kind::Uint8).equal(&again.0.view_dtype(Kind::Uint8)));
            [codes, scales]
        };
        let wide = x.to_kind(Kind::Double);
        let largest = wide.abs().amax([-1i64].as_slice(), true);
        let expected = (largest.log2().floor() - 7.0).exp2().clamp(2f64.powi(-107), 2f64.powi(121)).nan_to_num(
            2f64.powi(121),
            None,
            None,
        );
        let scales = scales.unsqueeze(-1).to_kind(Kind::Double);
        assert!(scales.equal(&expected), "{kind:?}: {scales} {expected}");
        let expected = (&wide / &scales).to_kind(Kind::Float).to_kind(Kind::Float8e4m3fn);
        let found = found.to_kind(Kind::Float);
        let expected = expected.to_kind(Kind::Float);
        let both_nan = expected.isnan().logical_and(&found.isnan());
        assert!(found.eq_tensor(&expected).logical_or(&both_nan).all().int64_value(&[]) == 1, "{kind:?}");
        assert_eq!(found.isnan().sum(Kind::Int64).int64_value(&[]), 2, "{kind:?}");
    });
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
