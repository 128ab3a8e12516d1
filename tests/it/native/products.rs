//! Compares the matrix products and the attention of native/product.cpp with libtorch's operations, in every build
//! (instruction set) that the machine can run.

use crate::support::{alone, device};
use ft::native::kernels;
use ft::native::products::{self, KernelBuild};
use tch::{Device, Kind, Tensor};

const FORMATS: [(Kind, Kind); 3] =
    [(Kind::Float, Kind::Float), (Kind::Float, Kind::BFloat16), (Kind::BFloat16, Kind::BFloat16)];

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Returns the largest absolute difference divided by the largest expected number.
fn gap(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    let largest = expected.abs().max().double_value(&[]).max(1e-3);
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / largest
}

/// Returns the allowed gap: float32 kernels add up to 1,600 numbers in another order; bfloat16 results are rounded
/// once.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 3e-6 } else { 4e-3 }
}

/// Computes x W^T + bias + onto in float64.
fn composed(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Tensor {
    let wide = |t: &Tensor| t.to_kind(Kind::Double);
    let mut y = wide(x).matmul(&wide(w).tr());
    for t in [bias, onto].into_iter().flatten() {
        y += wide(t);
    }
    y
}

/// (rows of x, rows of w, inner length): odd sizes, ranks of adapters, several blocks of rows.
const SIZES: [(i64, i64, i64); 10] = [
    (1, 1, 1),
    (1, 13, 576),
    (2, 9, 16),
    (3, 64, 7),
    (4, 33, 33),
    (5, 31, 1),
    (7, 6, 100),
    (16, 96, 64),
    (29, 130, 1600),
    (131, 67, 45),
];

#[test]
fn every_build_of_the_matrix_product_equals_libtorch() {
    // In a process of its own: other tests draw from the same generator, and a draw whose terms cancel is not comparable.
    alone("native::products::every_build_of_the_matrix_product_equals_libtorch", || {
        device();
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(7);
        for build in KernelBuild::available() {
            for (a, b) in FORMATS {
                for (rows, n, k) in SIZES {
                    let (x, w) = (random(&[rows, k], a), random(&[n, k], b));
                    let (bias, there) = (random(&[n], a), random(&[rows, n], a));
                    for (bias, onto) in
                        [(None, None), (Some(&bias), None), (None, Some(&there)), (Some(&bias), Some(&there))]
                    {
                        let expected = composed(&x, &w, bias, onto);
                        let onto = onto.map(Tensor::copy);
                        let found = build.product(&x, &w, bias, onto.as_ref()).unwrap();
                        let gap = gap(&found, &expected);
                        assert!(gap < tolerance(a), "{build:?} {a:?} {b:?} {rows} {n} {k}: {gap}");
                        assert_eq!(found.kind(), a);
                        assert!(onto.is_none_or(|there| there.data_ptr() == found.data_ptr()));
                    }
                }
            }
        }
    });
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(8);
    for build in KernelBuild::available() {
        for (a, b) in FORMATS {
            for (n, k) in [(70, 576), (33, 16), (5, 101)] {
                let (x, w) = (random(&[70, k], a), random(&[n, k], b));
                let all = build.product(&x, &w, None, None).unwrap();
                for (from, some) in [(0, 1), (69, 1), (3, 2), (10, 3), (20, 4), (21, 5), (1, 16), (6, 64)] {
                    let part = build.product(&x.narrow(0, from, some), &w, None, None).unwrap();
                    assert!(part.equal(&all.narrow(0, from, some)), "{build:?} {a:?} {b:?} {n} {k}: {some} rows");
                }
            }
        }
    }
}

#[test]
fn bfloat16_weights_give_the_bits_of_a_float32_copy() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(9);
    for build in KernelBuild::available() {
        for rows in [1, 2, 3, 8, 40] {
            let (x, w, bias) =
                (random(&[rows, 200], Kind::Float), random(&[37, 200], Kind::BFloat16), random(&[37], Kind::Float));
            let narrow = build.product(&x, &w, Some(&bias), None).unwrap();
            assert!(narrow.equal(&build.product(&x, &w.to_kind(Kind::Float), Some(&bias), None).unwrap()));
        }
    }
}

/// Around and beyond the number of rows that the kernels accept, `product` equals libtorch or returns `None`, which
/// leaves the work to libtorch.
#[test]
fn products_of_many_rows_are_correct_or_left_to_libtorch() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(10);
    for (a, b) in FORMATS {
        let most = products::product_rows(a, b);
        assert!(most > 0);
        for rows in [most, most + 1, 200] {
            let (x, w, bias) = (random(&[2, rows, 48], a), random(&[50, 48], b), random(&[50], a));
            let there = random(&[2, rows, 50], a);
            for onto in [None, Some(&there)] {
                let expected = composed(&x, &w, Some(&bias), onto);
                let onto = onto.map(Tensor::copy);
                match products::product(&x, &w, Some(&bias), onto.as_ref()) {
                    Some(y) => assert!(gap(&y, &expected) < tolerance(a), "{a:?} {b:?} {rows}"),
                    None => assert!(2 * rows > most),
                }
            }
        }
    }
    assert_eq!(products::product_rows(Kind::BFloat16, Kind::Float), 0);
    assert!(products::product(&random(&[2, 8], Kind::BFloat16), &random(&[3, 8], Kind::Float), None, None).is_none());
}

#[test]
fn every_build_of_decoding_attention_equals_composed_operations() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(12);
    for build in KernelBuild::available() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (held, heads, shared, e) in
                [(vec![0], 1, 1, 4), (vec![5, 0, 130], 6, 2, 64), (vec![1000, 17], 4, 4, 80), (vec![33], 9, 3, 63)]
            {
                let (slots, capacity) = (held.len() as i64, 1100);
                let tables = || random(&[slots + 1, shared, capacity, e], kind);
                let (keys, values) = (tables(), tables());
                let (q, k, v) = (
                    random(&[slots, heads, e], kind),
                    random(&[slots, shared, e], kind),
                    random(&[slots, shared, e], kind),
                );
                let sinks = Tensor::arange(heads, (Kind::Float, Device::Cpu)) * 1.5 - 2.0;
                for (window, sinks) in
                    [(None, None), (Some(1), None), (Some(20), None), (None, Some(&sinks)), (Some(20), Some(&sinks))]
                {
                    let scores = (0.2, sinks);
                    let found = build.decode_attention(&q, (&k, &v), (&keys, &values), &held, window, scores).unwrap();
                    for (s, n) in held.iter().enumerate() {
                        let (s, n) = (s as i64, n + 1);
                        let seen = n.min(window.unwrap_or(n));
                        let live = |t: &Tensor| t.get(s).narrow(1, n - seen, seen).to_kind(Kind::Double);
                        assert!(
                            keys.get(s).select(1, n - 1).equal(&k.get(s))
                                && values.get(s).select(1, n - 1).equal(&v.get(s))
                        );
                        let q = q.get(s).to_kind(Kind::Double).view([shared, heads / shared, e]);
                        let mut scores = q.matmul(&live(&keys).transpose(1, 2)) * 0.2; // (K, G, n)
                        if let Some(sinks) = sinks {
                            scores = Tensor::cat(&[scores, sinks.view([shared, -1, 1]).to_kind(Kind::Double)], -1);
                        }
                        let p = scores.softmax(-1, Kind::Double).narrow(-1, 0, seen);
                        let expected = p.matmul(&live(&values)).view([heads, e]);
                        let gap = gap(&found.get(s), &expected);
                        assert!(gap < tolerance(kind), "{build:?} {kind:?} {n} {e} {window:?}: {gap}");
                    }
                }
            }
        }
    }
}

/// The error of e^x for every 509th float32 whose result is a normal number. Loops and attention have equal bits.
#[test]
fn the_exponential_is_within_its_bound_in_every_build() {
    device();
    let range = |from: f32, to: f32| (from.to_bits()..to.to_bits()).step_by(509).map(f32::from_bits);
    let mut inputs: Vec<f32> = range(0.0, 88.72).chain(range(-0.0, -87.33)).collect();
    inputs.resize(inputs.len().next_multiple_of(16), 1.0);
    let expected: Vec<f64> = inputs.iter().map(|x| f64::from(*x).exp()).collect();
    let x = Tensor::from_slice(&inputs);
    let builds: Vec<_> = kernels::available().iter().rev().zip(KernelBuild::available()).collect();
    assert!(!builds.is_empty() && builds.len() == kernels::available().len());
    for (loops, build) in builds {
        let y = loops.exponential(&x);
        assert_eq!(y, build.exponential(&x).unwrap(), "{build:?}");
        let found = Vec::<f32>::try_from(&y).unwrap();
        let errors = found.iter().zip(&expected).map(|(y, e)| (f64::from(*y) - e).abs() / ulp(*e));
        let (most, at) =
            errors.zip(&inputs).fold((0.0, 0.0), |most, now| if now.0 > most.0 { (now.0, *now.1) } else { most });
        println!("{build:?}: {most:.3} ulp at {at}");
        assert!((0.5..1.1).contains(&most), "{build:?}: {most} ulp at {at}");
        let ends = [-0.0, 0.0, -87.34, f32::NEG_INFINITY, 88.73, f32::INFINITY, f32::NAN];
        let ends: Vec<f32> = ends.into_iter().chain([0.0; 9]).collect();
        for y in [loops.exponential(&Tensor::from_slice(&ends)), build.exponential(&Tensor::from_slice(&ends)).unwrap()]
        {
            let y = Vec::<f32>::try_from(&y).unwrap();
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY], "{build:?}");
            assert!(y[6].is_nan() && y[7] == 1.0);
        }
    }
}

/// Returns the distance of neighbouring float32 numbers at `x`.
fn ulp(x: f64) -> f64 {
    2f64.powi(x.log2().floor() as i32 - 23)
}
