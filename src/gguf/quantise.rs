//! Converts float32 numbers to ggml's formats: those with blocks of 32 with the same bits as the `gguf` Python package
//! (`gguf.quants`), whose rules are those of ggml's reference code; larger blocks in [`super::quantise_k`].
//!
//! Notation as in [`super::quant`]: `d` is the block's scale, `m` its offset, `q` the stored small integer.

use super::importance::{Importance, for_blocks};
use super::quant::{FOUR_BIT_LEVELS, GgmlType};
use super::quantise_k;
use super::quantise_search::{BY_IMPORTANCE, LEAST, largest, symmetric as symmetric_scale, with_minimum};
use half::{bf16, f16};
use rayon::prelude::*;

/// Writes the numbers of a block, whose errors may be weighted by importance.
type QuantiseBlock = fn(&[f32], Option<Importance>, &mut [u8]);

/// Returns `values` in a format. Panics if they are no whole number of blocks, and for formats that are only read.
pub fn quantise(kind: GgmlType, values: &[f32]) -> Vec<u8> {
    let (elements, bytes) = (kind.block_elements(), kind.block_bytes());
    assert!(values.len().is_multiple_of(elements), "{} numbers are no whole number of blocks", values.len());
    match kind {
        GgmlType::F32 => return each(values, |x| x.to_le_bytes()),
        GgmlType::F16 => return each(values, |x| f16::from_f32(x).to_le_bytes()),
        GgmlType::BF16 => return each(values, |x| bf16::from_f32(x).to_le_bytes()),
        _ => {}
    }
    let block = quantiser(kind);
    let mut out = vec![0u8; values.len() / elements * bytes];
    // Some thousand elements per task keep rayon's overhead small.
    let run = (1 << 14) / elements;
    out.par_chunks_mut(run * bytes).zip(values.par_chunks(run * elements)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(bytes).zip(x.chunks_exact(elements)) {
            block(x, None, y);
        }
    });
    out
}

/// Returns `values` in a format: rows of as many numbers as `importance` has, which says how much the errors of each column count.
/// Q8_0 does not regard it. Panics for formats that store each number by itself, and if rows are no whole number of blocks.
pub fn quantise_by_importance(kind: GgmlType, values: &[f32], importance: &[f32]) -> Vec<u8> {
    let (elements, bytes, columns) = (kind.block_elements(), kind.block_bytes(), importance.len());
    assert!(columns.is_multiple_of(elements), "rows of {columns} numbers are no whole number of blocks");
    assert!(values.len().is_multiple_of(columns), "{} numbers are no whole number of rows of {columns}", values.len());
    let block = quantiser(kind);
    let mut out = vec![0u8; values.len() / elements * bytes];
    let rows = (1 << 14) / columns + 1;
    let of_row = columns / elements * bytes;
    out.par_chunks_mut(rows * of_row).zip(values.par_chunks(rows * columns)).for_each(|(y, x)| {
        let mut y = y.chunks_exact_mut(bytes);
        for_blocks(x, importance, elements, |x, importance| {
            block(x, Some(importance), y.next().expect("as many blocks as there are bytes for"));
        });
    });
    out
}

/// Writes each number by itself.
fn each<const BYTES: usize>(values: &[f32], store: impl Fn(f32) -> [u8; BYTES] + Sync) -> Vec<u8> {
    let mut out = vec![0u8; values.len() * BYTES];
    let run = 1 << 14;
    out.par_chunks_mut(run * BYTES).zip(values.par_chunks(run)).for_each(|(y, x)| {
        y.chunks_exact_mut(BYTES).zip(x).for_each(|(y, x)| y.copy_from_slice(&store(*x)));
    });
    out
}

fn quantiser(kind: GgmlType) -> QuantiseBlock {
    match kind {
        GgmlType::Q8_0 => |x, _, b| q8_0(x, b),
        GgmlType::Q4_0 => |x, importance, b| symmetric(x, importance, b, 4),
        GgmlType::Q5_0 => |x, importance, b| symmetric(x, importance, b, 5),
        GgmlType::Q4_1 => |x, importance, b| with_offset(x, importance, b, 4),
        GgmlType::Q5_1 => |x, importance, b| with_offset(x, importance, b, 5),
        GgmlType::IQ4_NL => iq4_nl,
        GgmlType::Q2_K => quantise_k::q2_k,
        GgmlType::Q3_K => quantise_k::q3_k,
        GgmlType::Q4_K => quantise_k::q4_k,
        GgmlType::Q5_K => quantise_k::q5_k,
        GgmlType::Q6_K => quantise_k::q6_k,
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => {
            panic!("no blocks of {} are made", kind.name())
        }
    }
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
        // Halves away from 0: `round`, which is a call of a function without SSE 4.1.
        let y = x * id;
        let whole = y as i32;
        let rest = y - whole as f32;
        *b = (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8 as u8;
    }
}

/// d = −x / 2^(bits − 1) for the x of the largest magnitude, the first of equal ones; q = trunc(x / d + 2^(bits − 1) + 1/2). With
/// importance, d is searched for.
fn symmetric(x: &[f32], importance: Option<Importance>, b: &mut [u8], bits: u32) {
    let half = 1 << (bits - 1);
    if let Some(importance) = importance {
        let (weights, mut codes) = (importance.weights::<32>(x, importance.row), [0i8; 32]);
        let d = symmetric_scale(x, half, &weights, &mut codes);
        put_half(b, 0, d);
        return pack(&codes, &mut b[2..], bits, |code| (i32::from(*code) + half) as u8);
    }
    let half = half as f32;
    let d = largest(x) / -half;
    let id = inverse(d);
    put_half(b, 0, d);
    pack(x, &mut b[2..], bits, |x| (x * id + (half + 0.5)).clamp(0.0, 2.0 * half - 1.0) as u8);
}

/// d = (max − min) / (2^bits − 1), m = min, q = trunc((x − m) / d + 1/2). With importance, d and m are searched for.
fn with_offset(x: &[f32], importance: Option<Importance>, b: &mut [u8], bits: u32) {
    let most = (1 << bits) - 1;
    if let Some(importance) = importance {
        let (weights, mut codes) = (importance.weights::<32>(x, importance.row), [0u8; 32]);
        let (d, least) = with_minimum(x, most, &weights, BY_IMPORTANCE, &mut codes);
        put_half(b, 0, d);
        put_half(b, 2, -least);
        return pack(&codes, &mut b[4..], bits, |code| *code);
    }
    let (min, max) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)));
    let most = most as f32;
    let d = (max - min) / most;
    let id = inverse(d);
    put_half(b, 0, d);
    put_half(b, 2, min);
    pack(x, &mut b[4..], bits, |x| ((x - min) * id + 0.5).clamp(0.0, most) as u8);
}

/// y = d v, with the levels v of [`FOUR_BIT_LEVELS`]: d is the best of 16, with which the levels that are nearest to x / d have the
/// least squared error, weighted by x² or importance (`quantize_row_iq4_nl_impl`).
fn iq4_nl(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    // Where no column counts, as at the inputs of neurons that are never active, all count by their squares: ggml would divide 0 by 0.
    let weights: [f32; 32] = match importance.filter(|importance| importance.columns.iter().any(|w| *w > 0.0)) {
        Some(importance) => importance.weights(x, 2.0 * (x.iter().map(|x| x * x).sum::<f32>() / 32.0)),
        None => std::array::from_fn(|i| x[i] * x[i]),
    };
    b.fill(0);
    let most = largest(x);
    if most.abs() < LEAST {
        return b[2..].fill(nearest_level(0.0) * 0x11);
    }
    let first = f32::from(FOUR_BIT_LEVELS[0]);
    let inverses: [f32; 16] = std::array::from_fn(|i| match i {
        0 => 1.0 / (-most / first),
        _ => (i as f32 - 8.0 + first) / most,
    });
    let (qx, qq) = sums_of_levels(x, &weights, inverses);
    let mut d = qx[0] / qq[0];
    let mut best = d * qx[0];
    for (qx, qq) in qx.into_iter().zip(qq).skip(1) {
        if qq > 0.0 && qx * qx > best * qq {
            d = qx / qq;
            best = d * qx;
        }
    }
    put_half(b, 0, d);
    let id = inverse(d);
    pack(x, &mut b[2..], 4, |x| nearest_level(id * x));
}

/// Returns Σ w q x and Σ w q² for each of some inverse scales, where q is the level that is nearest to the inverse scale times x.
///
/// The inner loops go through the scales: they become vector instructions (with indices; calls of iterators are not always inlined), and
/// each sum keeps the order of the numbers, whose bits are ggml's.
fn sums_of_levels<const N: usize>(x: &[f32], weights: &[f32], inverses: [f32; N]) -> ([f32; N], [f32; N]) {
    let (mut qx, mut qq) = ([0f32; N], [0f32; N]);
    for (x, w) in x.iter().zip(weights) {
        let (mut scaled, mut q) = ([0f32; N], [f32::from(FOUR_BIT_LEVELS[0]); N]);
        for i in 0..N {
            scaled[i] = inverses[i] * x;
        }
        for (middle, step) in LEVEL_STEPS {
            for i in 0..N {
                q[i] += if scaled[i] >= middle { step } else { 0.0 };
            }
        }
        for i in 0..N {
            qx[i] += w * q[i] * x;
            qq[i] += w * q[i] * q[i];
        }
    }
    (qx, qq)
}

/// For each level but the first: from which number on it is nearer than the one before, and how much it is above that one.
const LEVEL_STEPS: [(f32, f32); 15] = {
    let mut steps = [(0.0, 0.0); 15];
    let mut i = 0;
    while i < steps.len() {
        let (low, high) = (FOUR_BIT_LEVELS[i] as f32, FOUR_BIT_LEVELS[i + 1] as f32);
        steps[i] = (0.5 * (low + high), high - low);
        i += 1;
    }
    steps
};

/// Returns the index of the level that is nearest to x, of two equally near ones the upper.
fn nearest_level(x: f32) -> u8 {
    let mut level = 0;
    for (middle, _) in LEVEL_STEPS {
        level += u8::from(x >= middle);
    }
    level
}

/// Packs 32 codes: with five bits, first the fifth bits of all; then low nibbles of the first 16 codes and high nibbles of the
/// last 16.
fn pack<T>(x: &[T], b: &mut [u8], bits: u32, code: impl Fn(&T) -> u8) {
    let (fifth, nibbles) = b.split_at_mut(if bits == 5 { 4 } else { 0 });
    for (i, x) in x.iter().enumerate() {
        let q = code(x);
        nibbles[i % 16] |= (q & 0x0F) << (4 * (i / 16));
        if bits == 5 {
            fifth[i / 8] |= (q >> 4) << (i % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::importance::tests::error_by_columns;
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
        for kind in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0, GgmlType::IQ4_NL] {
            for data in [quantise(kind, &[0.0; 64]), quantise_by_importance(kind, &[0.0; 64], &[1.0; 32])] {
                assert_eq!(dequantise(kind, &data), [0.0; 64], "{}", kind.name());
            }
        }
    }

    /// By differences in float32, as in ggml: beside the middle of two levels they have no rounding error.
    #[test]
    fn the_nearest_level_has_the_least_difference() {
        let by_difference = |x: f32| {
            let difference = |i: &usize| (x - f32::from(FOUR_BIT_LEVELS[*i])).abs();
            (0..16usize).rev().min_by(|a, b| difference(a).total_cmp(&difference(b))).unwrap()
        };
        let beside = LEVEL_STEPS.iter().flat_map(|(middle, _)| [middle.next_down(), *middle, middle.next_up()]);
        for x in beside.chain((-140..140).map(|i| i as f32 + 0.3)).chain([-1e4, 1e4]) {
            assert_eq!(usize::from(nearest_level(x)), by_difference(x), "{x}");
        }
    }

    #[test]
    fn columns_that_do_not_count_are_still_numbers() {
        let x: Vec<f32> = (0..64).map(|i| (i % 7) as f32 - 3.0).collect();
        let importance: Vec<f32> = (0..64).map(|i| if i < 32 { 0.0 } else { 1.0 }).collect();
        for kind in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::IQ4_NL] {
            let found = dequantise(kind, &quantise_by_importance(kind, &x, &importance));
            assert!(found.iter().all(|x| x.is_finite()), "{}: {found:?}", kind.name());
        }
    }

    #[test]
    fn importance_moves_the_error_to_columns_that_count_less() {
        let x: Vec<f32> = (0..2048u64).map(|i| ((i * 2654435761 % 65536) as f32 / 32768.0 - 1.0).powi(3)).collect();
        let importance: Vec<f32> = (0..64).map(|i| if i % 4 == 0 { 9.0 } else { 0.1 }).collect();
        for kind in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::IQ4_NL] {
            let plain = error_by_columns(&x, &dequantise(kind, &quantise(kind, &x)), &importance);
            let weighted = dequantise(kind, &quantise_by_importance(kind, &x, &importance));
            let weighted = error_by_columns(&x, &weighted, &importance);
            assert!(weighted < 0.97 * plain, "{}: {weighted} after {plain}", kind.name());
        }
    }
}
