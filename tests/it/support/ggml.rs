//! Random weights in the blocks of ggml.

use ft::gguf::quant::{GgmlType, dequantise};
use half::f16;
use rand::{Rng, RngExt};
use tch::Tensor;

/// The types whose numbers are in blocks.
pub const TYPES: [GgmlType; 11] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
];

/// Returns the bytes of a matrix (rows, columns) with random codes and finite scales, zeros, subnormal numbers and the
/// largest float16 among them.
pub fn random_blocks(kind: GgmlType, [rows, columns]: [i64; 2], seed: u64) -> Vec<u8> {
    let mut rng = ft::rng::stream(seed, "blocks", u64::from(kind.id()));
    let mut bytes = vec![0; (rows * columns) as usize / kind.block_elements() * kind.block_bytes()];
    rng.fill_bytes(&mut bytes);
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        for at in kind.scale_offsets() {
            let scale = match i % 29 {
                7 => f16::ZERO,
                11 => f16::from_bits(rng.random_range(0..0x400)),
                13 => f16::MAX,
                _ => f16::from_f32(rng.random_range(-0.1..0.1)),
            };
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// Returns the same without extreme scales: numbers like those of a model.
pub fn plain_blocks(kind: GgmlType, shape: [i64; 2], seed: u64) -> Vec<u8> {
    let mut bytes = random_blocks(kind, shape, seed);
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for at in kind.scale_offsets() {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(1.0 / 256.0).to_le_bytes());
        }
    }
    bytes
}

/// Returns bytes as a tensor that begins at an odd address.
pub fn unaligned(bytes: &[u8]) -> Tensor {
    Tensor::from_slice(&[&[0], bytes].concat()).narrow(0, 1, bytes.len() as i64)
}

/// Returns the numbers of a matrix in float32, as `gguf::quant` dequantises them.
pub fn numbers(kind: GgmlType, shape: [i64; 2], bytes: &[u8]) -> Tensor {
    Tensor::from_slice(&dequantise(kind, bytes)).view(shape)
}

/// Returns true if two tensors have the same bits, those of zeros included.
pub fn same_bits(found: &Tensor, expected: &Tensor) -> bool {
    let bits = |t: &Tensor| t.contiguous().view([-1]).view_dtype(tch::Kind::Uint8);
    found.kind() == expected.kind() && found.size() == expected.size() && bits(found).equal(&bits(expected))
}
