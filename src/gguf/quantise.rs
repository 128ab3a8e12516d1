//! Converts float32 numbers to ggml's formats: those with blocks of 32 with the same bits as the `gguf` Python package
//! (`gguf.quants`), whose rules are those of ggml's reference code; larger blocks in [`super::quantise_k`].
//!
//! Notation as in [`super::quant`]: `d` is the block's scale, `m` its offset, `q` the stored small integer.

use super::quant::GgmlType;
use super::quantise_k;
use half::{bf16, f16};
use rayon::prelude::*;

/// Returns `values` in a format. Panics if they are no whole number of blocks, and for formats that are only read.
pub fn quantise(kind: GgmlType, values: &[f32]) -> Vec<u8> {
    let (elements, bytes) = (kind.block_elements(), kind.block_bytes());
    assert!(values.len().is_multiple_of(elements), "{} numbers are no whole number of blocks", values.len());
    let block = match kind {
        GgmlType::F32 => |x: &[f32], b: &mut [u8]| b.copy_from_slice(&x[0].to_le_bytes()),
        GgmlType::F16 => |x: &[f32], b: &mut [u8]| b.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x: &[f32], b: &mut [u8]| b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_0 => |x: &[f32], b: &mut [u8]| symmetric(x, b, 4),
        GgmlType::Q5_0 => |x: &[f32], b: &mut [u8]| symmetric(x, b, 5),
        GgmlType::Q4_1 => |x: &[f32], b: &mut [u8]| with_offset(x, b, 4),
        GgmlType::Q5_1 => |x: &[f32], b: &mut [u8]| with_offset(x, b, 5),
        GgmlType::Q4_K => quantise_k::q4_k,
        GgmlType::Q5_K => quantise_k::q5_k,
        GgmlType::Q6_K => quantise_k::q6_k,
        other => panic!("{} is not written", other.name()),
    };
    let mut out = vec![0u8; values.len() / elements * bytes];
    // Some thousand elements per task keep rayon's overhead small.
    let run = (1 << 14) / elements;
    out.par_chunks_mut(run * bytes).zip(values.par_chunks(run * elements)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(bytes).zip(x.chunks_exact(elements)) {
            block(x, y);
        }
    });
    out
}

/// Returns 1 / d, or 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn put_half(b: &mut [u8], at: usize, x: f32) {
    b[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// d = max |x| / 127, q = x / d rounded to the nearest, halves away from 0.
fn q8_0(x: &[f32], b: &mut [u8]) {
    let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let d = most / 127.0;
    let id = inverse(d);
    put_half(b, 0, d);
    for (b, x) in b[2..].iter_mut().zip(x) {
        *b = (x * id).round() as i8 as u8;
    }
}

/// d = −x / 2^(bits − 1) for the x of the largest magnitude, the first of equal ones; q = trunc(x / d + 2^(bits − 1) + 1/2).
fn symmetric(x: &[f32], b: &mut [u8], bits: u32) {
    let mut most = x[0];
    for x in &x[1..] {
        if x.abs() > most.abs() {
            most = *x;
        }
    }
    let half = (1 << (bits - 1)) as f32;
    let d = most / -half;
    let id = inverse(d);
    put_half(b, 0, d);
    let code = |x: f32| (x * id + (half + 0.5)).trunc().clamp(0.0, 2.0 * half - 1.0) as u8;
    pack(x, &mut b[2..], bits, code);
}

/// d = (max − min) / (2^bits − 1), m = min, q = trunc((x − m) / d + 1/2).
fn with_offset(x: &[f32], b: &mut [u8], bits: u32) {
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)));
    let most = ((1 << bits) - 1) as f32;
    let d = (max - min) / most;
    let id = inverse(d);
    put_half(b, 0, d);
    put_half(b, 2, min);
    let code = |x: f32| ((x - min) * id + 0.5).trunc().clamp(0.0, most) as u8;
    pack(x, &mut b[4..], bits, code);
}

/// Packs 32 codes: with five bits, first the fifth bits of all; then low nibbles of the first 16 codes and high nibbles of the
/// last 16.
fn pack(x: &[f32], b: &mut [u8], bits: u32, code: impl Fn(f32) -> u8) {
    let (fifth, nibbles) = b.split_at_mut(if bits == 5 { 4 } else { 0 });
    for (i, x) in x.iter().enumerate() {
        let q = code(*x);
        nibbles[i % 16] |= (q & 0x0F) << (4 * (i / 16));
        if bits == 5 {
            fifth[i / 8] |= (q >> 4) << (i % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::quant::dequantise;

    #[test]
    fn numbers_on_the_grid_come_back_exactly() {
        let x: Vec<f32> = (0..32).map(|i| 0.5 * ((i % 15) as f32 - 8.0)).collect();
        for kind in [GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::F16, GgmlType::BF16, GgmlType::F32] {
            assert_eq!(dequantise(kind, &quantise(kind, &x)), x, "{}", kind.name());
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for kind in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0] {
            assert_eq!(dequantise(kind, &quantise(kind, &[0.0; 64])), [0.0; 64], "{}", kind.name());
        }
    }
}
