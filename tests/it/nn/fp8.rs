//! Weights in FP8 on the fake CUDA device: products that are computed in FP8 against float32 ones of the same numbers, and against those with
//! the weight before it was quantised; what is dequantised instead.

use crate::support::fake_cuda::{counts, inside, reset};
use crate::support::noise;
use ft::nn::{Quantisation, QuantisedFormat, QuantisedWeight, Weight};
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);
const CPU: Device = Device::Cpu;

/// Quantises a matrix (out, in) and moves it to the device.
fn fp8(weight: &Tensor) -> Weight {
    Weight::Quantised(QuantisedWeight::quantise(weight, Quantisation::new(QuantisedFormat::Fp8, true), GPU).unwrap())
}

/// Returns a matrix whose rows differ in size, in dtype `kind`, on the CPU.
fn rows(shape: [i64; 2], kind: Kind, name: &str) -> Tensor {
    let sizes = Tensor::from_slice(&[1f32, 0.01, 30.0, 0.4]).repeat([shape[0] / 4 + 1]).narrow(0, 0, shape[0]);
    (noise(&shape, name) * sizes.unsqueeze(-1)).to_kind(kind)
}

/// Returns the numbers that the rows of x are rounded to, in float64: written down without the code under test.
fn rounded(x: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Double);
    let largest = x.abs().amax([-1i64].as_slice(), true);
    let scales = (largest.log2().floor() - 7.0).exp2();
    (x / &scales).to_kind(Kind::Float).to_kind(Kind::Float8e4m3fn).to_kind(Kind::Double) * scales
}

/// Half a step of the dtype, relative to a number.
fn half_step(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 2f64.powi(-8) } else { 2f64.powi(-11) }
}

/// Fails unless y is the float64 product a b, summed in float32 and rounded to the dtype of y once.
#[track_caller]
fn assert_is_product(what: &str, y: &Tensor, a: &Tensor, b: &Tensor, more: Option<&Tensor>) {
    let exact = a.matmul(b) + more.map_or_else(|| Tensor::from(0.0), |more| more.to_kind(Kind::Double));
    let sums =
        a.abs().matmul(&b.abs()) + more.map_or_else(|| Tensor::from(0.0), |more| more.to_kind(Kind::Double).abs());
    // The product is rounded, and the sum with `more` another time; float16 has steps of 2^-24 for the smallest numbers.
    let (times, of_sums) = if more.is_some() { (2.0, half_step(y.kind())) } else { (1.0, 0.0) };
    let smallest = if y.kind() == Kind::Half { 2f64.powi(-25) } else { 0.0 };
    let allowed = exact.abs() * (times * half_step(y.kind())) + sums * (times * 1e-6 + of_sums) + times * smallest;
    let excess = (y.to_device(CPU).to_kind(Kind::Double) - &exact).abs() - allowed;
    assert!(excess.max().double_value(&[]) <= 0.0, "{what}: {} beyond what rounding allows", excess.max());
}

/// Returns the root mean square of a tensor.
fn size(t: &Tensor) -> f64 {
    t.to_kind(Kind::Double).square().mean(Kind::Double).sqrt().double_value(&[])
}

/// Result and gradient of the input, with and without a bias and a gradient that is added to.
#[test]
fn products_in_fp8_are_those_of_the_rounded_operands() {
    if !inside("nn::fp8::products_in_fp8_are_those_of_the_rounded_operands", &[("FAKE_CUDA_CAPABILITY", "89")]) {
        return;
    }
    for (kind, tokens, inputs, outputs) in
        [(Kind::BFloat16, 33, 64, 48), (Kind::BFloat16, 1, 256, 32), (Kind::Half, 20, 48, 80)]
    {
        let what = format!("{kind:?} {tokens} x {inputs} x {outputs}");
        let own = noise(&[outputs, inputs], "w") * 0.05;
        let weight = fp8(&own);
        let numbers = weight.dense(Kind::Float).to_device(CPU).to_kind(Kind::Double);
        let x = rows([tokens, inputs], kind, "x");
        let g = rows([tokens, outputs], kind, "g");
        let input = x.to_device(GPU).set_requires_grad(true);
        let y = weight.product(&input, None);
        assert!(y.kind() == kind && y.size() == [tokens, outputs]);
        assert_is_product(&what, &y, &rounded(&x), &numbers.tr(), None);
        ft::native::backward(&[&y], &[&g.to_device(GPU)]).unwrap();
        assert_is_product(&format!("{what}: gradient"), &input.grad(), &rounded(&g), &numbers, None);
        let bias = noise(&[outputs], "bias").to_kind(kind);
        let with_bias = weight.product(&x.to_device(GPU), Some(&bias.to_device(GPU)));
        assert_is_product(&format!("{what}: bias"), &with_bias, &rounded(&x), &numbers.tr(), Some(&bias));
        let sum = rows([tokens, inputs], kind, "sum");
        let back = weight.product_back(&g.to_device(GPU), Some(sum.to_device(GPU)));
        assert_is_product(&format!("{what}: sum"), &back, &rounded(&g), &numbers, Some(&sum));

        // With the weight as it was, in the dtype of x: both operands are rounded to three bits of fraction, by up to 2^-4 of a number. The
        // errors of many terms cancel, so that the root mean square of the error is much smaller than 2^-3 of that of the result.
        for (found, a, b) in [(&y, &x, own.tr()), (&input.grad(), &g, own.shallow_clone())] {
            let plain = a.to_kind(Kind::Double).matmul(&b.to_kind(kind).to_kind(Kind::Double));
            let gap = found.detach().to_device(CPU).to_kind(Kind::Double) - &plain;
            let bound = a.to_kind(Kind::Double).abs().matmul(&b.to_kind(Kind::Double).abs())
                * (0.125 + 0.004 + half_step(kind));
            assert!(
                (gap.abs() - bound).max().double_value(&[]) <= 0.0,
                "{what}: an error is larger than two roundings"
            );
            let share = (0..tokens).map(|t| size(&gap.get(t)) / size(&plain.get(t))).sum::<f64>() / tokens as f64;
            println!("{what}: the error is {share:.4} of the result");
            assert!((0.01..0.06).contains(&share), "{what}: {share}");
        }
    }
}

/// A token's result has the same bits alone and among others: its scale is its own.
#[test]
fn a_row_in_fp8_does_not_depend_on_the_others() {
    if !inside("nn::fp8::a_row_in_fp8_does_not_depend_on_the_others", &[]) {
        return;
    }
    let weight = fp8(&noise(&[32, 64], "w"));
    let x = rows([24, 64], Kind::BFloat16, "x").to_device(GPU);
    let all = weight.product(&x, None);
    for t in 0..24 {
        assert!(weight.product(&x.narrow(0, t, 1), None).equal(&all.narrow(0, t, 1)), "row {t}");
    }
}

/// Returns true if the product with `weight` has the bits of that with its dequantised numbers, forward and backward.
fn is_dequantised(weight: &Weight, kind: Kind) -> bool {
    let [outputs, inputs] = weight.shape()[..] else { unreachable!() };
    let dense = Weight::Dense(weight.dense(kind));
    let (x, g) = (rows([9, inputs], kind, "x").to_device(GPU), rows([9, outputs], kind, "g").to_device(GPU));
    let both = |weight: &Weight| [weight.product(&x, None), weight.product_back(&g, None)];
    let same: Vec<bool> = both(weight).iter().zip(both(&dense)).map(|(a, b)| a.equal(&b)).collect();
    assert!(same[0] == same[1], "one of the two directions");
    same[0]
}

/// In float32, and for sizes that are no multiple of 16.
#[test]
fn what_has_no_product_in_fp8_is_dequantised() {
    if !inside("nn::fp8::what_has_no_product_in_fp8_is_dequantised", &[]) {
        return;
    }
    let weight = |shape: [i64; 2]| fp8(&noise(&shape, "w"));
    assert!(!is_dequantised(&weight([48, 64]), Kind::BFloat16));
    assert!(is_dequantised(&weight([48, 64]), Kind::Float));
    for shape in [[40, 64], [48, 56], [33, 50]] {
        assert!(is_dequantised(&weight(shape), Kind::BFloat16), "{shape:?}");
    }
    let none = weight([48, 64]).product(&Tensor::zeros([0, 64], (Kind::BFloat16, GPU)), None);
    assert_eq!(none.size(), [0, 48]);
}

#[test]
fn older_devices_dequantise() {
    if !inside("nn::fp8::older_devices_dequantise", &[("FAKE_CUDA_CAPABILITY", "80")]) {
        return;
    }
    for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
        assert!(is_dequantised(&fp8(&noise(&[48, 64], "w")), kind), "{kind:?}");
    }
}

/// Rounding, product and the rows' scales; in the backward also the transposed codes, and the sum instead of the scales.
#[test]
fn a_product_in_fp8_takes_few_launches() {
    if !inside("nn::fp8::a_product_in_fp8_takes_few_launches", &[]) {
        return;
    }
    let weight = fp8(&noise(&[48, 64], "w"));
    let (x, g) = (rows([9, 64], Kind::BFloat16, "x").to_device(GPU), rows([9, 48], Kind::BFloat16, "g").to_device(GPU));
    let launches = |work: &dyn Fn() -> Tensor| {
        drop(work()); // compiles the kernels
        reset();
        drop(work());
        (counts().launches, counts().waits)
    };
    assert_eq!(launches(&|| weight.product(&x, None)), (3, 0));
    assert_eq!(launches(&|| weight.product_back(&g, None)), (4, 0));
    let sum = x.copy();
    assert_eq!(launches(&|| weight.product_back(&g, Some(sum.shallow_clone()))), (4, 0));
}
