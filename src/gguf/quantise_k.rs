//! Converts float32 numbers to ggml's formats with blocks of 256 (Q4_K, Q5_K, Q6_K), by the rules of its reference code
//! (`quantize_row_q4_K_ref`, …): scales are chosen among some candidates by the weighted square of the error.

use half::f16;

/// Below this, numbers count as zero.
const LEAST: f32 = 1e-15;

/// Rounds to the nearest integer, halves to the even one.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn half(b: &mut [u8], at: usize, x: f32) -> f32 {
    let stored = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// Returns the scale with which integers from −n to n − 1 come nearest to `x`, weighted by the squares of `x`.
fn symmetric_scale(x: &[f32], n: i32) -> f32 {
    let mut most = 0f32;
    for x in x {
        if x.abs() > most.abs() {
            most = *x;
        }
    }
    if most.abs() < LEAST {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0f32, 0f32);
        for x in x {
            let l = nearest(inverse * x).clamp(-n, n - 1) as f32;
            let weight = x * x;
            xl += weight * x * l;
            ll += weight * l * l;
        }
        (xl, ll)
    };
    let (xl, ll) = sums(-(n as f32) / most);
    let mut scale = if ll != 0.0 { xl / ll } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (xl, ll) = sums(-(n as f32 + 0.1 * step as f32) / most);
        if ll > 0.0 && xl * xl > best * ll {
            scale = xl / ll;
            best = scale * xl;
        }
    }
    scale
}

/// 16 groups of 16: y = d s (q − 32), signed eight-bit s.
pub(super) fn q6_k(x: &[f32], b: &mut [u8]) {
    let scales: Vec<f32> = x.chunks_exact(16).map(|group| symmetric_scale(group, 32)).collect();
    let mut most = 0f32;
    for scale in &scales {
        if scale.abs() > most.abs() {
            most = *scale;
        }
    }
    if most.abs() < LEAST {
        return b.fill(0);
    }
    let inverse = -128.0 / most;
    let d = half(b, 208, 1.0 / inverse);
    let mut codes = [0u8; 256];
    for (g, scale) in scales.iter().enumerate() {
        let s = nearest(inverse * scale).min(127) as i8;
        b[192 + g] = s as u8;
        let step = d * s as f32;
        for i in 16 * g..16 * (g + 1) {
            // Where the scale is 0, ggml leaves the codes of its first pass; any code gives 0.
            codes[i] = if step == 0.0 { 32 } else { (nearest(x[i] / step).clamp(-32, 31) + 32) as u8 };
        }
    }
    b[..192].fill(0);
    for (i, q) in codes.iter().enumerate() {
        b[i / 128 * 64 + i % 64] |= (q & 0x0F) << (4 * (i % 128 / 64));
        b[128 + i / 128 * 32 + i % 32] |= (q >> 4) << (2 * (i % 128 / 32));
    }
}

/// Returns scale and minus the minimum with which integers from 0 to n come nearest to `x`, weighted by the size of numbers.
/// Candidates are (n + first + step k) / (max − min) for k from 0 to `steps`.
fn scale_and_min(x: &[f32], n: i32, first: f32, step: f32, steps: i32) -> (f32, f32) {
    let mean: f32 = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    let weights: Vec<f32> = x.iter().map(|x| mean + x.abs()).collect();
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(&weights).skip(1) {
        min = min.min(*x);
        max = max.max(*x);
        sum_w += w;
        sum_x += w * x;
    }
    min = min.min(0.0);
    if max == min {
        return (0.0, -min);
    }
    let code = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).clamp(0, n) as f32;
    let error = |inverse: f32, from: f32, scale: f32, min: f32| {
        let mut sum = 0f32;
        for (x, w) in x.iter().zip(&weights) {
            let difference = scale * code(inverse, from, *x) + min - x;
            sum += w * (difference * difference);
        }
        sum
    };
    let inverse = n as f32 / (max - min);
    let (mut scale, mut best) = (1.0 / inverse, error(inverse, min, 1.0 / inverse, min));
    for k in 0..=steps {
        let from = min; // the best so far, as in the reference code
        let inverse = (first + step * k as f32 + n as f32) / (max - from);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0f32, 0f32, 0f32);
        for (x, w) in x.iter().zip(&weights) {
            let l = code(inverse, from, *x);
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_ll;
            }
            let this_error = error(inverse, from, this_scale, this_min);
            if this_error < best {
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// 8 groups of 32: y = d s q − dmin t, with six-bit s and t.
pub(super) fn q4_k(x: &[f32], b: &mut [u8]) {
    let codes = scaled_groups(x, b, 15, |group| scale_and_min(group, 15, -1.0, 0.1, 20));
    b[16..].fill(0);
    put_nibbles(&codes, &mut b[16..144]);
}

/// As Q4_K, with a fifth bit of q in 32 further bytes.
pub(super) fn q5_k(x: &[f32], b: &mut [u8]) {
    let codes = scaled_groups(x, b, 31, |group| scale_and_min(group, 31, -0.5, 0.1, 15));
    b[16..].fill(0);
    for (i, q) in codes.iter().enumerate() {
        b[16 + i % 32] |= (q >> 4) << (i / 32);
    }
    put_nibbles(&codes, &mut b[48..176]);
}

/// Writes the low four bits of 256 codes: group 2k in the low nibbles of 32 bytes, group 2k + 1 in the high ones.
fn put_nibbles(codes: &[u8; 256], b: &mut [u8]) {
    for (i, q) in codes.iter().enumerate() {
        b[i / 64 * 32 + i % 32] |= (q & 0x0F) << (4 * (i / 32 % 2));
    }
}

/// Writes d, dmin and the packed scales and minima of eight groups, and returns the codes, from 0 to `n`.
fn scaled_groups(x: &[f32], b: &mut [u8], n: i32, find: impl Fn(&[f32]) -> (f32, f32)) -> [u8; 256] {
    let groups: Vec<(f32, f32)> = x.chunks_exact(32).map(find).collect();
    let most = |of: fn(&(f32, f32)) -> f32| groups.iter().map(of).fold(0f32, f32::max);
    let (max_scale, max_min) = (most(|g| g.0), most(|g| g.1));
    let inverse = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    let six = |inverse: f32, x: f32| nearest(inverse * x).clamp(0, 63) as u8;
    let (d, dmin) = (half(b, 0, max_scale / 63.0), half(b, 2, max_min / 63.0));
    b[4..16].fill(0);
    let mut codes = [0u8; 256];
    for (g, (scale, min)) in groups.iter().enumerate() {
        let (s, t) = (six(inverse(max_scale), *scale), six(inverse(max_min), *min));
        let packed = &mut b[4..16];
        if g < 4 {
            packed[g] |= s;
            packed[g + 4] |= t;
        } else {
            packed[g + 4] = (s & 0x0F) | (t & 0x0F) << 4;
            packed[g - 4] |= (s >> 4) << 6;
            packed[g] |= (t >> 4) << 6;
        }
        let (step, offset) = (d * s as f32, dmin * t as f32);
        for i in 32 * g..32 * (g + 1) {
            codes[i] = if step == 0.0 { 0 } else { nearest((x[i] + offset) / step).clamp(0, n) as u8 };
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use crate::gguf::quant::{GgmlType, dequantise};
    use crate::gguf::quantise::quantise;

    #[test]
    fn each_has_a_smaller_error_than_the_plain_blocks_of_as_many_bits() {
        let x: Vec<f32> = (0..2048u64).map(|i| ((i * 2654435761 % 65536) as f32 / 32768.0 - 1.0).powi(3)).collect();
        let error = |kind| {
            let y = dequantise(kind, &quantise(kind, &x));
            x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
        };
        assert!(error(GgmlType::Q4_K) < error(GgmlType::Q4_0));
        assert!(error(GgmlType::Q5_K) < error(GgmlType::Q5_0));
        // A bit more halves the steps: a quarter of the squared error, if all else is equal.
        assert!(error(GgmlType::Q5_K) < error(GgmlType::Q4_K) / 3.0);
        assert!(error(GgmlType::Q6_K) < error(GgmlType::Q5_K) / 2.0 && error(GgmlType::Q6_K) > error(GgmlType::Q8_0));
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for kind in [GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K] {
            assert_eq!(dequantise(kind, &quantise(kind, &[0.0; 256])), [0.0; 256], "{}", kind.name());
        }
    }
}
