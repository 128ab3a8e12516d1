//! Converts float32 numbers to ggml's formats with blocks of 256 (Q2_K to Q6_K), by the rules of its reference code
//! (`quantize_row_q4_K_ref`, …), or with importance (`quantize_row_q4_K_impl`, …).

use super::importance::Importance;
use super::quantise_search::{
    BY_IMPORTANCE, Candidates, LEAST, largest, nearest, not_negative, symmetric, three_bits, with_minimum,
};
use half::f16;

fn half(b: &mut [u8], at: usize, x: f32) -> f32 {
    let stored = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

fn mean_square(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32
}

/// 16 groups of 16: y = d s (q − 32), signed eight-bit s.
pub(super) fn q6_k(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    let (mut codes, mut scales) = ([0i8; 256], [0f32; 16]);
    // Here importance counts as it is.
    let weights: [f32; 256] = match importance {
        Some(importance) => std::array::from_fn(|i| importance.columns[i]),
        None => std::array::from_fn(|i| x[i] * x[i]),
    };
    for (g, scale) in scales.iter_mut().enumerate() {
        let group = 16 * g..16 * (g + 1);
        *scale = symmetric(&x[group.clone()], 32, &weights[group.clone()], &mut codes[group]);
    }
    let most = largest(&scales);
    if most.abs() < LEAST {
        return b.fill(0);
    }
    let inverse = -128.0 / most;
    let d = half(b, 208, 1.0 / inverse);
    for (g, scale) in scales.iter().enumerate() {
        let s = nearest(inverse * scale).min(127) as i8;
        b[192 + g] = s as u8;
        again(x, 16 * g..16 * (g + 1), d * f32::from(s), 0.0, (-32, 31), &mut codes);
    }
    b[..192].fill(0);
    for (i, q) in codes.iter().enumerate() {
        let q = (q + 32) as u8;
        b[i / 128 * 64 + i % 64] |= (q & 0x0F) << (4 * (i % 128 / 64));
        b[128 + i / 128 * 32 + i % 32] |= (q >> 4) << (2 * (i % 128 / 32));
    }
}

/// Rounds a group to the integers of its final scale: (x + offset) / scale. Where the scale is 0, they stay as they are.
fn again(x: &[f32], group: std::ops::Range<usize>, scale: f32, offset: f32, limits: (i32, i32), codes: &mut [i8; 256]) {
    if scale != 0.0 {
        for i in group {
            codes[i] = nearest((x[i] + offset) / scale).clamp(limits.0, limits.1) as i8;
        }
    }
}

/// 16 groups of 16: y = d s q, with six-bit s and q from −4 to 3.
pub(super) fn q3_k(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    let (mut codes, mut scales, mut packed) = ([0i8; 256], [0f32; 16], [-32i8; 16]);
    let weights: Option<[f32; 256]> = importance.map(|importance| importance.weights(x, 2.0 * mean_square(x)));
    for (g, scale) in scales.iter_mut().enumerate() {
        let group = 16 * g..16 * (g + 1);
        *scale = match &weights {
            Some(weights) => symmetric(&x[group.clone()], 4, &weights[group.clone()], &mut codes[group]),
            None => three_bits(&x[group.clone()], &mut codes[group]),
        };
    }
    let d = match &weights {
        Some(weights) => {
            let sums: [f32; 16] = std::array::from_fn(|g| weights[16 * g..16 * (g + 1)].iter().sum());
            symmetric(&scales, 32, &sums, &mut packed)
        }
        None => {
            let inverse = -32.0 / largest(&scales);
            if inverse.is_finite() {
                packed = std::array::from_fn(|g| nearest(inverse * scales[g]).clamp(-32, 31) as i8);
                1.0 / inverse
            } else {
                0.0
            }
        }
    };
    b.fill(0);
    let d = half(b, 108, d);
    for (g, s) in packed.iter().enumerate() {
        let bits = (s + 32) as u8;
        b[96 + g % 8] |= (bits & 0x0F) << (4 * (g / 8));
        b[104 + g % 4] |= (bits >> 4) << (2 * (g / 4));
        again(x, 16 * g..16 * (g + 1), d * f32::from(*s), 0.0, (-4, 3), &mut codes);
    }
    for (i, q) in codes.iter().enumerate() {
        let q = (q + 4) as u8;
        b[i % 32] |= (q >> 2) << (i / 32);
        b[32 + i / 128 * 32 + i % 32] |= (q & 3) << (2 * (i % 128 / 32));
    }
}

/// Scales and minima of the groups of a block, whole numbers times one float16 each.
struct Minima<const GROUPS: usize> {
    scales: [u8; GROUPS],
    minima: [u8; GROUPS],
    codes: [i8; 256],
}

impl<const GROUPS: usize> Minima<GROUPS> {
    /// Finds them for codes from 0 to `n` and scales and minima from 0 to `most`; writes both float16 numbers at `at`. Without
    /// importance, errors are weighted by `weight(root of the mean square of the group, x)`.
    fn find(
        x: &[f32],
        importance: Option<Importance>,
        (n, most): (i32, i32),
        (plain, weight): (Candidates, fn(f32, f32) -> f32),
        spread: f32,
        (b, at): (&mut [u8], usize),
    ) -> Self {
        let size = 256 / GROUPS;
        let (mut codes, mut found) = ([0u8; 256], [(0f32, 0f32); GROUPS]);
        let (mut weights, mut sums) = ([0f32; 256], [0f32; GROUPS]);
        if let Some(importance) = importance {
            weights = importance.weights(x, spread * mean_square(x));
        }
        for (g, group) in x.chunks_exact(size).enumerate() {
            let weights = &mut weights[g * size..(g + 1) * size];
            if importance.is_none() {
                let root = mean_square(group).sqrt();
                weights.iter_mut().zip(group).for_each(|(w, x)| *w = weight(root, *x));
            }
            sums[g] = weights.iter().sum();
            let among = if importance.is_some() { BY_IMPORTANCE } else { plain };
            found[g] = with_minimum(group, n, weights, among, &mut codes[g * size..(g + 1) * size]);
        }
        let (scales, minima) = (found.map(|g| g.0), found.map(|g| g.1));
        let (mut s, mut t) = ([0u8; GROUPS], [0u8; GROUPS]);
        let (d, dmin) = match importance {
            Some(_) => (not_negative(&scales, most, &sums, &mut s), not_negative(&minima, most, &sums, &mut t)),
            None => (share(&scales, most, &mut s), share(&minima, most, &mut t)),
        };
        let (d, dmin) = (half(b, at, d), half(b, at + 2, dmin));
        let mut codes = codes.map(|q| q as i8);
        for g in 0..GROUPS {
            let (scale, offset) = (d * f32::from(s[g]), dmin * f32::from(t[g]));
            again(x, g * size..(g + 1) * size, scale, offset, (0, n), &mut codes);
        }
        Self { scales: s, minima: t, codes }
    }
}

/// Writes numbers as shares of the largest, from 0 to `most`, and returns the step.
fn share(x: &[f32], most: i32, codes: &mut [u8]) -> f32 {
    let largest = x.iter().copied().fold(0f32, f32::max);
    let inverse = if largest > 0.0 { most as f32 / largest } else { 0.0 };
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = nearest(inverse * x).clamp(0, most) as u8);
    largest / most as f32
}

/// 16 groups of 16: y = d s q − dmin t, with four-bit s and t, and q of two bits.
pub(super) fn q2_k(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    let plain = Candidates { first: -0.5, step: 0.1, steps: 15, absolute: true };
    let found = Minima::<16>::find(x, importance, (3, 15), (plain, |_, x| x.abs()), 1.0, (b, 80));
    for (g, b) in b[..16].iter_mut().enumerate() {
        *b = found.scales[g] | found.minima[g] << 4;
    }
    b[16..80].fill(0);
    for (i, q) in found.codes.iter().enumerate() {
        b[16 + i / 128 * 32 + i % 32] |= (*q as u8) << (2 * (i % 128 / 32));
    }
}

/// 8 groups of 32: y = d s q − dmin t, with six-bit s and t.
pub(super) fn q4_k(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    let plain = Candidates { first: -1.0, step: 0.1, steps: 20, absolute: false };
    let found = Minima::find(x, importance, (15, 63), (plain, |root, x| root + x.abs()), 2.0, (b, 0));
    b[4..].fill(0);
    put_six_bits(&found, &mut b[4..16]);
    put_nibbles(&found.codes, &mut b[16..144]);
}

/// As Q4_K, with a fifth bit of q in 32 further bytes.
pub(super) fn q5_k(x: &[f32], importance: Option<Importance>, b: &mut [u8]) {
    let plain = Candidates { first: -0.5, step: 0.1, steps: 15, absolute: false };
    let found = Minima::find(x, importance, (31, 63), (plain, |root, x| root + x.abs()), 2.0, (b, 0));
    b[4..].fill(0);
    put_six_bits(&found, &mut b[4..16]);
    for (i, q) in found.codes.iter().enumerate() {
        b[16 + i % 32] |= (*q as u8 >> 4) << (i / 32);
    }
    put_nibbles(&found.codes, &mut b[48..176]);
}

/// Writes the low four bits of 256 codes: group 2k in the low nibbles of 32 bytes, group 2k + 1 in the high ones.
fn put_nibbles(codes: &[i8; 256], b: &mut [u8]) {
    for (i, q) in codes.iter().enumerate() {
        b[i / 64 * 32 + i % 32] |= (*q as u8 & 0x0F) << (4 * (i / 32 % 2));
    }
}

/// Packs the scales and minima of eight groups, six bits each, into 12 bytes.
fn put_six_bits(found: &Minima<8>, packed: &mut [u8]) {
    for (g, (s, t)) in found.scales.iter().zip(&found.minima).enumerate() {
        if g < 4 {
            packed[g] |= s;
            packed[g + 4] |= t;
        } else {
            packed[g + 4] = (s & 0x0F) | (t & 0x0F) << 4;
            packed[g - 4] |= (s >> 4) << 6;
            packed[g] |= (t >> 4) << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::gguf::importance::tests::error_by_columns;
    use crate::gguf::quant::{GgmlType, dequantise};
    use crate::gguf::quantise::{quantise, quantise_by_importance};

    const KINDS: [GgmlType; 5] = [GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K];

    fn numbers() -> Vec<f32> {
        (0..2048u64).map(|i| ((i * 2654435761 % 65536) as f32 / 32768.0 - 1.0).powi(3)).collect()
    }

    #[test]
    fn each_has_a_smaller_error_than_the_plain_blocks_of_as_many_bits() {
        let x = numbers();
        let error = |kind| {
            let y = dequantise(kind, &quantise(kind, &x));
            x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
        };
        assert!(error(GgmlType::Q4_K) < error(GgmlType::Q4_0));
        assert!(error(GgmlType::Q5_K) < error(GgmlType::Q5_0));
        // A bit more halves the steps: a quarter of the squared error, if all else is equal.
        for pair in KINDS.windows(2) {
            assert!(error(pair[1]) < error(pair[0]) / 2.0, "{pair:?}");
        }
        assert!(error(GgmlType::Q6_K) > error(GgmlType::Q8_0));
    }

    #[test]
    fn importance_moves_the_error_to_columns_that_count_less() {
        let (x, importance) = (numbers(), (0..256).map(|i| if i % 4 == 0 { 9.0 } else { 0.1 }).collect::<Vec<f32>>());
        for kind in KINDS {
            let plain = error_by_columns(&x, &dequantise(kind, &quantise(kind, &x)), &importance);
            let weighted = dequantise(kind, &quantise_by_importance(kind, &x, &importance));
            let weighted = error_by_columns(&x, &weighted, &importance);
            assert!(weighted < 0.97 * plain, "{}: {weighted} after {plain}", kind.name());
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for kind in KINDS {
            for data in [quantise(kind, &[0.0; 256]), quantise_by_importance(kind, &[0.0; 256], &[1.0; 256])] {
                assert_eq!(dequantise(kind, &data), [0.0; 256], "{}", kind.name());
            }
        }
    }
}
