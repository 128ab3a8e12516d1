//! Gradients of low-rank factors, and rows that leave room beside gradients for what low-rank updates need.

use super::{KINDS, displaced, in_both_orders, kernels, near, random, tolerance};
use ft::native::cuda::{FactorProduct, RowUpdate};
use tch::{Kind, Tensor};

/// Returns `scale wide^T narrow`, or its transpose, in float64.
fn composed(p: &FactorProduct) -> Tensor {
    let product = p.wide.to_kind(Kind::Double).tr().matmul(&p.narrow.to_kind(Kind::Double)) * p.scale;
    if p.transposed { product.tr() } else { product }
}

/// Products of several shapes in one launch: few and many tokens, columns that are no whole packs, parts of wider matrices, and
/// addresses at which no pack can be read.
#[test]
fn gradients_of_factors_equal_libtorch() {
    tch::manual_seed(21);
    for kind in KINDS {
        let k = kernels(kind);
        for tokens in [1, 5, 33, 300, 2_111] {
            let matrix = |columns: i64| random(&[tokens, columns], kind);
            let [a, b, c, d] = [264, 96, 7, 1_000].map(matrix);
            let [r, s, t] = [8, 16, 3].map(matrix);
            let (wide, both) = (matrix(200), matrix(40));
            let (columns, part) = (wide.narrow(1, 8, 96), both.narrow(1, 16, 24));
            let odd = (displaced(&b), displaced(&s));
            let product = |wide, narrow, scale, transposed| FactorProduct { wide, narrow, scale, transposed };
            let products = [
                product(&a, &r, 1.0, false),
                product(&b, &s, 0.5, true),
                product(&c, &t, 2.0, false),
                product(&d, &t, 1.0, true),
                product(&columns, &part, 3.0, true),
                product(&odd.0, &odd.1, 1.0, false),
            ];
            let found = in_both_orders(|| <[Tensor; 6]>::try_from(k.factor_products(&products)).unwrap());
            for (i, (found, p)) in found.iter().zip(&products).enumerate() {
                assert_eq!(found.kind(), Kind::Float);
                near(&format!("{kind:?}, {tokens} tokens, product {i}"), found, &composed(p), 2e-6);
            }
        }
    }
}

/// More products than a launch takes; a second launch finds the counters as the first did.
#[test]
fn many_products_take_several_launches() {
    tch::manual_seed(22);
    let k = kernels(Kind::BFloat16);
    let pairs: Vec<(Tensor, Tensor)> =
        (0..37).map(|i| (random(&[90, 40 + i], Kind::BFloat16), random(&[90, 1 + i % 9], Kind::BFloat16))).collect();
    let products: Vec<FactorProduct> = pairs
        .iter()
        .enumerate()
        .map(|(i, (wide, narrow))| FactorProduct { wide, narrow, scale: i as f64, transposed: i % 2 == 0 })
        .collect();
    for _ in 0..2 {
        for (i, (found, p)) in k.factor_products(&products).iter().zip(&products).enumerate() {
            near(&format!("product {i}"), found, &composed(p), 2e-6);
        }
    }
}

/// A norm of rows that are parts of wider ones has the bits of contiguous rows; the sum takes the place of the residual, and
/// the gradient's rows are as far apart, with nothing written between them.
#[test]
fn norms_read_and_write_parts_of_wider_rows() {
    tch::manual_seed(23);
    for kind in KINDS {
        let k = kernels(kind);
        for (rows, width, more) in [(1, 8, 8), (3, 7, 2), (5, 64, 8), (9, 576, 16)] {
            let [x_all, y_all] = [(); 2].map(|()| random(&[rows, width + more], kind));
            let (w, g, g_sum) = (random(&[width], kind), random(&[rows, width], kind), random(&[rows, width], kind));
            let part = |t: &Tensor| t.narrow(1, 0, width);
            let plain = |t: &Tensor| part(t).contiguous();
            let (sum, normal, inverse) = k.rms_norm(&plain(&x_all), Some(&plain(&y_all)), &w, 1e-5);
            let (g_x, g_w) = k.rms_norm_backward(&sum, &w, &inverse, &g, Some(&g_sum), true);
            let [found, again, back, of_weight, behind] = in_both_orders(|| {
                let y = y_all.copy();
                let (found, again, inverse) = k.rms_norm(&part(&x_all), Some(&part(&y)), &w, 1e-5);
                if rows > 1 {
                    assert_eq!(found.data_ptr(), y.data_ptr(), "the sum takes the residual's place");
                }
                let (back, of_weight) = k.rms_norm_backward(&found, &w, &inverse, &g, Some(&g_sum), true);
                if rows > 1 {
                    assert_eq!(back.stride(), [width + more, 1]);
                }
                [found, again, back, of_weight.unwrap(), y.narrow(1, width, more).contiguous()]
            });
            assert!(found.equal(&sum) && again.equal(&normal) && back.equal(&g_x) && of_weight.equal(&g_w.unwrap()));
            assert!(behind.equal(&y_all.narrow(1, width, more)), "nothing is written behind the rows");
        }
    }
}

/// A sum with an update of one summand is rounded once; the norm behind it changes nothing of it. Low-rank results are columns behind
/// the summand's, or a matrix of their own at an address at which no pack can be read.
#[test]
fn updates_are_added_before_the_sum_is_rounded() {
    tch::manual_seed(25);
    for kind in KINDS {
        let k = kernels(kind);
        for (rows, width, rank) in [(1, 8, 8), (3, 7, 2), (5, 64, 16), (9, 576, 12), (2, 33, 64), (4, 2_056, 8)] {
            let (x, y_all) = (random(&[rows, width], kind), random(&[rows, width + rank], kind));
            let (w, b) = (random(&[width], kind), random(&[width, rank], kind));
            let part = |t: &Tensor| t.narrow(1, 0, width);
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let low = y_all.narrow(1, width, rank);
            let exact = wide(&x) + wide(&part(&y_all)) + wide(&low).matmul(&wide(&b).tr());
            for apart in [false, true] {
                let [sum, normal, inverse, alone] = in_both_orders(|| {
                    let compute = |with_norm: bool| {
                        let y = y_all.copy();
                        let low = y.narrow(1, width, rank);
                        let low = if apart { displaced(&low.contiguous()) } else { low };
                        let update = RowUpdate { low, b: b.shallow_clone() };
                        match with_norm {
                            true => k.add_rms_norm(&x, Some(&part(&y)), Some(&update), &w, 1e-5),
                            false => (k.add_update(&x, &part(&y), &update), x.shallow_clone(), x.shallow_clone()),
                        }
                    };
                    let ((sum, normal, inverse), (alone, ..)) = (compute(true), compute(false));
                    [sum, normal, inverse, alone].map(|t| t.contiguous())
                });
                near(&format!("{kind:?}, {rows} x {width}, rank {rank}"), &sum, &exact, tolerance(kind) / 2.0);
                assert!(alone.equal(&sum));
                // In rows that cannot be read in packs, the squares are added up in another order.
                let (_, expected, of_sum) = k.rms_norm(&sum, None, &w, 1e-5);
                near("norm", &normal, &expected, tolerance(kind));
                near("inverse", &inverse, &of_sum, 1e-6);
            }
        }
    }
}

/// Gradients of columns of wider rows are columns of rows as wide.
#[test]
fn gradients_leave_the_room_that_results_had() {
    tch::manual_seed(24);
    for kind in KINDS {
        let k = kernels(kind);
        let (rows, width, more) = (5, 24, 8);
        let (all, g) = (random(&[rows, 2 * width + more], kind), random(&[rows, width], kind));
        let (gate, up) = (all.narrow(1, 0, width), all.narrow(1, width, width));
        let (g_gate, g_up) = k.swiglu_backward(&gate, &up, &g);
        assert_eq!((g_gate.stride(), g_up.stride()), (all.stride(), all.stride()));
        let (a, b) = k.swiglu_backward(&gate.contiguous(), &up.contiguous(), &g);
        assert!(g_gate.equal(&a) && g_up.equal(&b));
        let grads = [3, 1, 1].map(|heads| random(&[rows, heads, 8], kind));
        let (cos, sin) = (random(&[rows, 1, 4], kind), random(&[rows, 1, 4], kind));
        let turned = |row| k.rotate_beside(grads.each_ref(), &cos, &sin, -1.0, row);
        let (plain, wider) = (turned(40), turned(56));
        for (plain, wider) in plain.iter().zip(&wider) {
            assert!(plain.equal(wider));
            assert_eq!((plain.stride()[0], wider.stride()[0]), (40, 56));
        }
    }
}
