//! Searches for the scale of a group of numbers that are stored as small integers, by the rules of ggml's reference code. Each
//! minimises a weighted square of the error over some candidates; weights are those of [`super::importance`], or functions of the
//! numbers themselves.
//!
//! Sums are float32 and go through the numbers in order, so that results have ggml's bits.

/// Below this, numbers count as zero.
pub(super) const LEAST: f32 = 1e-15;

/// Rounds a number of at most 2^22 to the nearest integer, halves to the even one, as ggml does: the sum with 1.5 · 2^23 has no
/// room for a fraction. Without SSE 4.1, `round_ties_even` is a call of a function.
pub(super) fn nearest(x: f32) -> i32 {
    let sum = x + 12_582_912.0;
    (sum.to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Returns the number of the largest magnitude, the first of equal ones.
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most })
}

/// Returns the scale with which integers from −n to n − 1 come nearest to `x`, and writes these (`make_qx_quants`).
pub(super) fn symmetric(x: &[f32], n: i32, weights: &[f32], codes: &mut [i8]) -> f32 {
    let most = largest(x);
    if most.abs() < LEAST {
        codes.fill(-n as i8);
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest(inverse * x).clamp(-n, n - 1);
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0f32, 0f32);
        for (x, w) in x.iter().zip(weights) {
            let l = code(inverse, *x) as f32;
            xl += w * x * l;
            ll += w * l * l;
        }
        (xl, ll)
    };
    let mut chosen = -(n as f32) / most;
    let (xl, ll) = sums(chosen);
    let mut scale = if ll != 0.0 { xl / ll } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = -(n as f32 + 0.1 * step as f32) / most;
        let (xl, ll) = sums(inverse);
        if ll > 0.0 && xl * xl > best * ll {
            (scale, chosen) = (xl / ll, inverse);
            best = scale * xl;
        }
    }
    for (code_of, x) in codes.iter_mut().zip(x) {
        *code_of = code(chosen, *x) as i8;
    }
    scale
}

/// Returns the scale with which integers from −4 to 3 come nearest to `x`, weighted by its squares, and writes these: begins with
/// the largest number and improves one integer at a time (`make_q3_quants`).
pub(super) fn three_bits(x: &[f32], codes: &mut [i8]) -> f32 {
    let most = largest(x);
    if most.abs() < LEAST {
        codes.fill(-4);
        return 0.0;
    }
    let (mut xl, mut ll) = (0f32, 0f32);
    for (x, code) in x.iter().zip(&mut *codes) {
        *code = nearest(-4.0 / most * x).clamp(-4, 3) as i8;
        let (l, w) = (f32::from(*code), x * x);
        xl += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, code) in x.iter().zip(&mut *codes) {
            let (l, w) = (f32::from(*code), x * x);
            let mut other_xl = xl - w * x * l;
            if other_xl <= 0.0 {
                continue;
            }
            let mut other_ll = ll - w * l * l;
            let new = nearest(x * other_ll / other_xl).clamp(-4, 3);
            if new == i32::from(*code) {
                continue;
            }
            let l = new as f32;
            other_xl += w * x * l;
            other_ll += w * l * l;
            if other_ll > 0.0 && other_xl * other_xl * ll > xl * xl * other_ll {
                *code = new as i8;
                (xl, ll, changed) = (other_xl, other_ll, true);
            }
        }
        if !changed {
            break;
        }
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}

/// Numbers of the largest group that is searched.
const LARGEST_GROUP: usize = 32;

/// The candidates of [`with_minimum`]: (n + first + step k) / (max − min) for k from 0 to `steps`.
#[derive(Clone, Copy)]
pub(super) struct Candidates {
    pub first: f32,
    pub step: f32,
    pub steps: i32,
    /// The error is the weighted sum of magnitudes instead of squares.
    pub absolute: bool,
}

/// Those of the reference code where numbers have weights of their own.
pub(super) const BY_IMPORTANCE: Candidates = Candidates { first: -0.9, step: 0.05, steps: 36, absolute: false };

/// Returns scale and minus the minimum with which integers from 0 to n come nearest to `x`, and writes these
/// (`make_qkx2_quants`, `make_qkx3_quants`).
pub(super) fn with_minimum(x: &[f32], n: i32, weights: &[f32], among: Candidates, codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = min.min(*x);
        max = max.max(*x);
        sum_w += w;
        sum_x += w * x;
    }
    min = min.min(0.0);
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).clamp(0, n) as f32;
    let error = |rounded: &[f32], scale: f32, min: f32| {
        let mut sum = 0f32;
        for ((x, w), l) in x.iter().zip(weights).zip(rounded) {
            let difference = scale * l + min - x;
            sum += w * if among.absolute { difference.abs() } else { difference * difference };
        }
        sum
    };
    let inverse = n as f32 / (max - min);
    let (mut chosen, mut candidate) = ([0f32; LARGEST_GROUP], [0f32; LARGEST_GROUP]);
    chosen.iter_mut().zip(x).for_each(|(l, x)| *l = code(inverse, min, *x));
    let (mut scale, mut best) = (1.0 / inverse, error(&chosen, 1.0 / inverse, min));
    for k in 0..=among.steps {
        // From the best minimum so far, as in the reference code.
        let inverse = (among.first + among.step * k as f32 + n as f32) / (max - min);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((x, w), rounded) in x.iter().zip(weights).zip(&mut candidate) {
            let l = code(inverse, min, *x);
            *rounded = l;
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
            let this_error = error(&candidate, this_scale, this_min);
            if this_error < best {
                (best, scale, min, chosen) = (this_error, this_scale, this_min, candidate);
            }
        }
    }
    codes.iter_mut().zip(chosen).for_each(|(code, l)| *code = l as u8);
    (scale, -min)
}

/// Returns the scale with which integers from 0 to n come nearest to `x`, which are not negative, and writes these
/// (`make_qp_quants`).
pub(super) fn not_negative(x: &[f32], n: i32, weights: &[f32], codes: &mut [u8]) -> f32 {
    let max = x.iter().copied().fold(0f32, f32::max);
    if max < LEAST {
        codes.fill(0);
        return 0.0;
    }
    let mut inverse = n as f32 / max;
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        let mut sum = 0f32;
        for (x, w) in x.iter().zip(weights) {
            let difference = x - scale * nearest(inverse * x).min(n) as f32;
            sum += w * difference * difference;
        }
        sum
    };
    let mut best = error(inverse);
    for step in (-4..=4).filter(|step| *step != 0) {
        let other = (0.1 * step as f32 + n as f32) / max;
        let found = error(other);
        if found < best {
            (best, inverse) = (found, other);
        }
    }
    let (mut xl, mut ll) = (0f32, 0f32);
    for ((x, w), code) in x.iter().zip(weights).zip(&mut *codes) {
        *code = nearest(inverse * x).min(n) as u8;
        let l = f32::from(*code);
        xl += w * x * l;
        ll += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((x, w), code) in x.iter().zip(weights).zip(&mut *codes) {
            let l = f32::from(*code);
            let (mut other_xl, mut other_ll) = (xl - w * x * l, ll - w * l * l);
            if other_xl <= 0.0 || other_ll <= 0.0 {
                continue;
            }
            let new = nearest(x * other_ll / other_xl).min(n);
            if new == i32::from(*code) {
                continue;
            }
            let l = new as f32;
            other_xl += w * x * l;
            other_ll += w * l * l;
            if other_xl * other_xl * ll > xl * xl * other_ll {
                *code = new as u8;
                (xl, ll, changed) = (other_xl, other_ll, true);
            }
        }
        if !changed {
            break;
        }
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn numbers_are_rounded_to_the_nearest_even_integer() {
        for i in -40_000..40_000 {
            let x = i as f32 / 64.0;
            assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
        }
        assert_eq!((nearest(4_194_303.0), nearest(-4_194_303.0)), (4_194_303, -4_194_303));
    }
}
