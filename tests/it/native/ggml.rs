//! Compares the kernels of weights in ggml's blocks with `gguf::quant` in every build (instruction set) that the machine
//! can run: the numbers have the same bits, and a product those of a product with the dequantised weight.

use crate::support::device;
use crate::support::ggml::{TYPES, numbers, plain_blocks, random_blocks, same_bits, unaligned};
use ft::native::products::KernelBuild;
use ft::native::quantised::QuantisedMatrix;
use tch::{Device, Kind, Tensor};

/// Rows, and blocks of a row.
const SHAPES: [[i64; 2]; 4] = [[1, 1], [7, 3], [9, 2], [130, 5]];

#[test]
fn every_build_dequantises_to_the_bits_of_the_reference() {
    device();
    let _no_grad = tch::no_grad_guard();
    for kind in TYPES {
        for [rows, blocks] in SHAPES {
            let shape = [rows, blocks * kind.block_elements() as i64];
            let bytes = random_blocks(kind, shape, 41);
            let (expected, tensor) = (numbers(kind, shape, &bytes), unaligned(&bytes));
            let matrix = QuantisedMatrix::of_ggml_blocks(shape, &tensor, kind.id());
            for build in KernelBuild::available() {
                for dtype in [Kind::Float, Kind::BFloat16] {
                    let found = matrix.rows_by(build, 0..rows, dtype);
                    assert!(same_bits(&found, &expected.to_kind(dtype)), "{build:?} {kind:?} {shape:?} {dtype:?}");
                    let (from, to) = (rows / 3, rows - rows / 4);
                    let part = matrix.rows_by(build, from..to, dtype);
                    assert!(part.equal(&found.narrow(0, from, to - from)), "{build:?} {kind:?} {shape:?} {dtype:?}");
                }
            }
        }
    }
}

/// Products with a dequantised weight by the same build's kernels, which are compared with libtorch in `products`.
#[test]
fn a_product_has_the_bits_of_a_product_with_the_dequantised_weight() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(42);
    for kind in TYPES {
        for [rows, blocks] in SHAPES {
            let shape = [rows, blocks * kind.block_elements() as i64];
            let tensor = unaligned(&plain_blocks(kind, shape, 42));
            let matrix = QuantisedMatrix::of_ggml_blocks(shape, &tensor, kind.id());
            for build in KernelBuild::available() {
                for dtype in [Kind::Float, Kind::BFloat16] {
                    let dense = matrix.rows_by(build, 0..rows, dtype);
                    let bias = Tensor::randn([rows], (Kind::Float, Device::Cpu)).to_kind(dtype);
                    for count in [1, 2, 3, 4, 5, 6, 7, 16, 70] {
                        let x = Tensor::randn([count, shape[1]], (Kind::Float, Device::Cpu)).to_kind(dtype);
                        let bias = (count % 2 == 0).then_some(&bias);
                        let found = matrix.product_by(build, &x, bias).unwrap();
                        let expected = build.product(&x, &dense, bias, None).unwrap();
                        assert!(found.equal(&expected), "{build:?} {kind:?} {shape:?} {dtype:?}: {count} rows");
                    }
                }
            }
        }
    }
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_other_rows() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(43);
    for kind in TYPES {
        let shape = [70, 3 * kind.block_elements() as i64];
        let tensor = unaligned(&plain_blocks(kind, shape, 43));
        let matrix = QuantisedMatrix::of_ggml_blocks(shape, &tensor, kind.id());
        for build in KernelBuild::available() {
            for dtype in [Kind::Float, Kind::BFloat16] {
                let x = Tensor::randn([64, shape[1]], (Kind::Float, Device::Cpu)).to_kind(dtype);
                let all = matrix.product_by(build, &x, None).unwrap();
                for (from, some) in [(0, 1), (63, 1), (3, 2), (10, 3), (20, 4), (21, 5), (7, 6), (1, 16)] {
                    let part = matrix.product_by(build, &x.narrow(0, from, some), None).unwrap();
                    assert!(part.equal(&all.narrow(0, from, some)), "{build:?} {kind:?} {dtype:?}: {some} rows");
                }
            }
        }
    }
}
