//! Compares the kernels of quantised weights in every build (instruction set) that the machine can run: quantising and
//! dequantising give equal bits in all of them, and a product has the bits of that with the dequantised weight.

use crate::support::device;
use ft::native::products::KernelBuild;
use ft::native::quantised::{BLOCK, Codes, GROUP, QuantisedMatrix, ScaleTensors, quantise_4bit_by};
use std::array::from_fn;
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A matrix with random codes and scales of each kind.
struct Sample {
    shape: [i64; 2],
    four_bits: Tensor,
    int8: Tensor,
    values: [f32; 16],
    block_scales: Tensor,
    row_scales: Tensor,
    scale_codes: Tensor,
    scale_scales: Tensor,
    scale_values: [f32; 256],
    bytes: Tensor,
    group_scales: Tensor,
    zeros: Tensor,
}

/// Bits and sizes of the groups of a sample: whole blocks, and groups that are no whole number of blocks or vectors. There
/// are no groups in rows of an odd number of columns.
const GROUPS: [(i64, i64); 4] = [(4, 64), (4, 192), (4, 24), (8, 24)];

impl Sample {
    fn new(rows: i64, columns: i64) -> Self {
        let (n, bytes) = (rows * columns, (Kind::Uint8, Device::Cpu));
        let blocks = (n + BLOCK - 1) / BLOCK;
        let block_scales = Tensor::rand([blocks], CPU);
        let _ = block_scales.narrow(0, 0, 1).fill_(3e-38); // its numbers are subnormal
        Self {
            shape: [rows, columns],
            four_bits: Tensor::randint(256, [(n + 1) / 2], bytes),
            int8: (Tensor::randint(255, [n], (Kind::Int, Device::Cpu)) - 127).to_kind(Kind::Int8),
            values: from_fn(|i| (i as f32 - 7.3) / 8.1),
            block_scales,
            row_scales: Tensor::rand([rows], CPU),
            scale_codes: Tensor::randint(256, [blocks], bytes),
            scale_scales: Tensor::rand([(blocks + GROUP - 1) / GROUP], CPU),
            scale_values: from_fn(|i| (i as f32 - 120.0) / 131.0),
            bytes: Tensor::randint(256, [n], bytes),
            group_scales: Tensor::rand([n], CPU).to_kind(Kind::Half).to_kind(Kind::Float),
            zeros: Tensor::randint(16, [n], bytes),
        }
    }

    /// Returns the formats of groups that the sample has.
    fn groups(&self) -> impl Iterator<Item = (i64, i64)> {
        GROUPS.into_iter().filter(|_| self.shape[1] % 2 == 0)
    }

    /// Returns codes, scales and zeros for groups.
    fn in_groups(&self, bits: i64, group: i64) -> [Tensor; 3] {
        let [rows, columns] = self.shape;
        let count = rows * ((columns + group - 1) / group);
        let part = |t: &Tensor, n| t.narrow(0, 0, n);
        [part(&self.bytes, rows * columns * bits / 8), part(&self.group_scales, count), part(&self.zeros, count)]
    }

    /// Returns the matrix in each format.
    fn matrices<'a>(&'a self, groups: &'a [(i64, i64, [Tensor; 3])]) -> Vec<QuantisedMatrix<'a>> {
        let scales = ScaleTensors::Double {
            codes: &self.scale_codes,
            scales: &self.scale_scales,
            values: &self.scale_values,
            offset: 0.37,
        };
        let plain = ScaleTensors::Plain;
        let mut all = vec![
            QuantisedMatrix::new(self.shape, &self.four_bits, Codes::FourBits(&self.values), plain(&self.block_scales)),
            QuantisedMatrix::new(self.shape, &self.four_bits, Codes::FourBits(&self.values), scales),
            QuantisedMatrix::new(self.shape, &self.int8, Codes::Int8, plain(&self.row_scales)),
        ];
        all.extend(groups.iter().map(|(bits, group, [codes, scales, zeros])| {
            let meaning = Codes::Groups { bits: *bits, group: *group, zeros };
            QuantisedMatrix::new(self.shape, codes, meaning, plain(scales))
        }));
        all
    }

    /// Returns the parts of the formats in groups, which `matrices` describes.
    fn all_groups(&self) -> Vec<(i64, i64, [Tensor; 3])> {
        self.groups().map(|(bits, group)| (bits, group, self.in_groups(bits, group))).collect()
    }

    /// Returns the numbers of each format, by libtorch's operations.
    fn expected(&self) -> Vec<Tensor> {
        let n = self.shape[0] * self.shape[1];
        let halves =
            Tensor::stack(&[self.four_bits.bitwise_right_shift_tensor_scalar(4), self.four_bits.bitwise_and(15)], 1);
        let values =
            Tensor::from_slice(&self.values).index_select(0, &halves.view([-1]).to_kind(Kind::Int)).narrow(0, 0, n);
        let of_blocks = |t: &Tensor| t.repeat_interleave_self_int(BLOCK, 0, None::<i64>).narrow(0, 0, n);
        let groups = self.scale_scales.repeat_interleave_self_int(GROUP, 0, None::<i64>);
        let codes = Tensor::from_slice(&self.scale_values).index_select(0, &self.scale_codes.to_kind(Kind::Int));
        let double = codes * groups.narrow(0, 0, self.scale_codes.size()[0]) + f64::from(0.37f32);
        let int8 = self.int8.to_kind(Kind::Float).view(self.shape) * self.row_scales.unsqueeze(-1);
        let mut all = vec![
            (&values * of_blocks(&self.block_scales)).view(self.shape),
            (&values * of_blocks(&double)).view(self.shape),
            int8 * 7.874_015_718_698_502e-3,
        ];
        let [rows, columns] = self.shape;
        for (bits, group, [codes, scales, zeros]) in self.all_groups() {
            let codes = match bits {
                4 => Tensor::stack(&[codes.bitwise_right_shift_tensor_scalar(4), codes.bitwise_and(15)], 1),
                _ => codes,
            };
            let wide = |t: &Tensor| {
                let repeated = t.view([rows, -1]).to_kind(Kind::Float);
                repeated.repeat_interleave_self_int(group, 1, None::<i64>).narrow(1, 0, columns)
            };
            all.push((codes.view(self.shape).to_kind(Kind::Float) - wide(&zeros)) * wide(&scales));
        }
        all
    }
}

/// Rows and columns: blocks that are rows, that end with rows, that run over them; odd numbers of columns.
const SHAPES: [[i64; 2]; 6] = [[7, 64], [40, 576], [130, 192], [9, 33], [21, 100], [1, 5]];

#[test]
fn every_build_dequantises_to_the_bits_of_libtorch() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(21);
    for shape in SHAPES {
        let sample = Sample::new(shape[0], shape[1]);
        let groups = sample.all_groups();
        for (expected, matrix) in sample.expected().iter().zip(sample.matrices(&groups)) {
            for build in KernelBuild::available() {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let found = matrix.rows_by(build, 0..shape[0], kind);
                    assert!(found.equal(&expected.to_kind(kind)), "{build:?} {shape:?} {kind:?}");
                    let (from, to) = (shape[0] / 3, shape[0] - shape[0] / 4);
                    let part = matrix.rows_by(build, from..to, kind);
                    assert!(part.equal(&found.narrow(0, from, to - from)), "{build:?} {shape:?} {kind:?}: rows");
                }
            }
        }
    }
}

#[test]
fn every_build_quantises_to_the_same_bits() {
    device();
    tch::manual_seed(22);
    let order: [u8; 16] = from_fn(|i| (i as u8) ^ 5);
    let borders: [f32; 15] = from_fn(|i| (i as f32 - 6.9) / 9.0);
    for n in [1, 2, 63, 64, 65, 1000, 4096] {
        let x = Tensor::randn([n], CPU);
        let builds: Vec<KernelBuild> = KernelBuild::available().collect();
        let (codes, scales) = quantise_4bit_by(builds[0], &x, &borders, &order);
        for build in &builds[1..] {
            let found = quantise_4bit_by(*build, &x, &borders, &order);
            assert!(found.0.equal(&codes) && found.1.equal(&scales), "{build:?} {n}");
        }
        // The definition: the code of the interval in which a number over its block's largest magnitude lies.
        let scaled = &x / scales.repeat_interleave_self_int(BLOCK, 0, None::<i64>).narrow(0, 0, n);
        let rank = scaled.bucketize(&Tensor::from_slice(&borders), true, false);
        let halves = Tensor::stack(&[codes.bitwise_right_shift_tensor_scalar(4), codes.bitwise_and(15)], 1);
        let found = halves.view([-1]).narrow(0, 0, n).to_kind(Kind::Int);
        let differ = found.bitwise_xor(5).not_equal_tensor(&rank).sum(Kind::Int64).int64_value(&[]);
        assert!(differ <= n / 1000, "{differ} of {n}: more than divisions that are rounded otherwise");
    }
}

#[test]
fn a_block_with_a_number_that_is_not_finite_has_the_scale_nan() {
    device();
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for build in KernelBuild::available() {
            let x = Tensor::ones([200], CPU);
            let _ = x.narrow(0, 130, 1).fill_(bad);
            let (_, scales) = quantise_4bit_by(build, &x, &from_fn(|i| i as f32), &from_fn(|i| i as u8));
            let broken: Vec<f32> = Vec::try_from(&scales).unwrap();
            assert_eq!(broken.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, false, true, false], "{build:?}");
        }
    }
}

/// Products with a dequantised weight by the same build's kernels, which are compared with libtorch in `products`.
#[test]
fn a_product_has_the_bits_of_a_product_with_the_dequantised_weight() {
    device();
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(23);
    for shape in SHAPES {
        let sample = Sample::new(shape[0], shape[1]);
        let groups = sample.all_groups();
        for (format, matrix) in sample.matrices(&groups).iter().enumerate() {
            for build in KernelBuild::available() {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let dense = matrix.rows_by(build, 0..shape[0], kind);
                    let bias = Tensor::randn([shape[0]], CPU).to_kind(kind);
                    for rows in [1, 2, 5, 16, 70] {
                        let x = Tensor::randn([rows, shape[1]], CPU).to_kind(kind);
                        for bias in [None, Some(&bias)] {
                            let found = matrix.product_by(build, &x, bias).unwrap();
                            let expected = build.product(&x, &dense, bias, None).unwrap();
                            assert!(found.equal(&expected), "{build:?} {format} {shape:?} {kind:?}: {rows} rows");
                        }
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
    tch::manual_seed(24);
    for shape in [[70, 576], [33, 45]] {
        let sample = Sample::new(shape[0], shape[1]);
        let groups = sample.all_groups();
        for matrix in sample.matrices(&groups) {
            for build in KernelBuild::available() {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let x = Tensor::randn([64, shape[1]], CPU).to_kind(kind);
                    let all = matrix.product_by(build, &x, None).unwrap();
                    for (from, some) in [(0, 1), (63, 1), (3, 2), (10, 3), (20, 4), (21, 5), (1, 16)] {
                        let part = matrix.product_by(build, &x.narrow(0, from, some), None).unwrap();
                        assert!(part.equal(&all.narrow(0, from, some)), "{build:?} {shape:?} {kind:?}: {some} rows");
                    }
                }
            }
        }
    }
}
