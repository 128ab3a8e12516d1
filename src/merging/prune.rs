//! Sets entries of a change to zero: those of the smallest magnitude, or random ones.

use crate::rng;
use rand::RngExt;
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Keeps the share `density` of the entries with the largest magnitude, rounded down, and sets the others to zero (the
/// trimming of TIES, arXiv 2306.01708, section 4). Of equal magnitudes the first by position are kept.
pub fn keep_largest(change: &Tensor, density: f64) -> Tensor {
    let count = change.numel() as i64;
    let kept = (density * count as f64) as i64;
    if density >= 1.0 || kept >= count {
        return change.shallow_clone();
    }
    if kept <= 0 {
        return change.zeros_like();
    }
    let size = change.abs().flatten(0, -1);
    let (limit, _) = size.kthvalue(count - kept + 1, 0, false);
    let above = size.gt_tensor(&limit);
    let missing = kept - above.sum(Kind::Int64).int64_value(&[]);
    let equal = size.eq_tensor(&limit);
    let first = equal.cumsum(0, Kind::Int64).le(missing).logical_and(&equal);
    change * above.logical_or(&first).view_as(change)
}

/// Keeps the entries where `kept` is true, sets the others to zero, and divides by `density`, so that the expected sum stays
/// the same (DARE, arXiv 2311.03099, section 3.2).
pub fn drop_and_rescale(change: &Tensor, kept: &Tensor, density: f64) -> Tensor {
    change * kept / density
}

/// Numbers per random stream: masks are drawn in blocks of this size, in parallel.
const STREAM_BLOCK: usize = 1 << 16;
/// Words of 32 bits that a random number takes from its stream.
const WORDS: u128 = 2;

/// Returns random numbers from 0 to 1 for the first `count` entries of a change. A number depends on the seed, the name and the
/// position of an entry alone.
fn random_numbers(count: usize, seed: u64, name: &str) -> Vec<f64> {
    let mut numbers = vec![0.0; count];
    let parts = numbers.par_chunks_mut(STREAM_BLOCK).enumerate();
    parts.for_each(|(i, part)| fill_with_random_numbers(part, i * STREAM_BLOCK, seed, name));
    numbers
}

/// Writes the random numbers for the entries from position `start` on.
pub fn fill_with_random_numbers(mut numbers: &mut [f64], mut start: usize, seed: u64, name: &str) {
    while !numbers.is_empty() {
        let (stream, skipped) = (start / STREAM_BLOCK, start % STREAM_BLOCK);
        let length = numbers.len().min(STREAM_BLOCK - skipped);
        let (part, rest) = std::mem::take(&mut numbers).split_at_mut(length);
        let mut rng = rng::stream(seed, name, stream as u64);
        rng.set_word_pos(WORDS * skipped as u128);
        part.iter_mut().for_each(|number| *number = rng.random());
        start += part.len();
        numbers = rest;
    }
}

/// Writes normal random numbers with the standard deviation 1 for the entries from position `start` on (Box and Muller 1958). A number
/// depends on the seed, the name and its position alone.
pub fn fill_with_normal_numbers(numbers: &mut [f64], start: usize, seed: u64, name: &str) {
    let mut uniform = vec![0.0; 2 * numbers.len()];
    fill_with_random_numbers(&mut uniform, 2 * start, seed, name);
    for (number, pair) in numbers.iter_mut().zip(uniform.chunks(2)) {
        *number = (-2.0 * (1.0 - pair[0]).ln()).sqrt() * (std::f64::consts::TAU * pair[1]).cos();
    }
}

/// Draws which entries of a change are kept, each with probability `density`: a boolean tensor of this shape. It depends on
/// the seed, the name and the position of an entry alone.
pub fn random_mask(shape: &[i64], density: f64, seed: u64, name: &str) -> Tensor {
    let numbers = random_numbers(shape.iter().product::<i64>() as usize, seed, name);
    let kept: Vec<bool> = numbers.into_iter().map(|number| number < density).collect();
    Tensor::from_slice(&kept).view(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_and_the_first_of_equal_ones() {
        let change = Tensor::from_slice(&[1f32, -3.0, 2.0, -2.0, 2.0, 0.5]).view([2, 3]);
        let kept = |density| Vec::<f32>::try_from(keep_largest(&change, density).flatten(0, -1)).unwrap();
        assert_eq!(kept(0.5), [0.0, -3.0, 2.0, -2.0, 0.0, 0.0]);
        assert_eq!(kept(0.34), [0.0, -3.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(0.1), [0.0; 6]);
        assert_eq!(kept(1.0), [1.0, -3.0, 2.0, -2.0, 2.0, 0.5]);
    }

    #[test]
    fn masks_have_their_density_and_belong_to_their_name_and_seed() {
        let mask = |name, seed| random_mask(&[400, 331], 0.3, seed, name);
        let share = mask("a", 1).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // The standard deviation of the share is sqrt(0.3 · 0.7 / 132400) = 0.00126.
        assert!((share - 0.3).abs() < 0.006, "{share}");
        assert!(mask("a", 1).equal(&mask("a", 1)));
        assert!(!mask("a", 1).equal(&mask("b", 1)) && !mask("a", 1).equal(&mask("a", 2)));
        let flat = mask("a", 1).flatten(0, -1);
        assert!(!flat.narrow(0, 0, 1000).equal(&flat.narrow(0, STREAM_BLOCK as i64, 1000)), "two blocks differ");
    }

    #[test]
    fn numbers_of_a_part_are_those_of_the_whole() {
        let whole = random_numbers(200_000, 3, "x");
        for range in [0..0, 10..30, 65_000..66_000, 65_536..131_072, 60_000..200_000] {
            let mut part = vec![0.0; range.len()];
            fill_with_random_numbers(&mut part, range.start, 3, "x");
            assert_eq!(part, whole[range]);
        }
    }

    #[test]
    fn normal_numbers_have_their_moments_and_belong_to_their_place() {
        let mut whole = vec![0.0; 100_000];
        fill_with_normal_numbers(&mut whole, 0, 3, "x");
        let mut part = vec![0.0; 1000];
        fill_with_normal_numbers(&mut part, 40_000, 3, "x");
        assert_eq!(part, whole[40_000..41_000]);
        let mean = |power: i32| whole.iter().map(|x| x.powi(power)).sum::<f64>() / whole.len() as f64;
        // The standard deviations of these means are 0.0032, 0.0045 and 0.031.
        assert!(mean(1).abs() < 0.015 && (mean(2) - 1.0).abs() < 0.02 && (mean(4) - 3.0).abs() < 0.15);
    }

    #[test]
    fn dropping_and_rescaling_keeps_the_mean() {
        let change = Tensor::ones([300, 300], (Kind::Float, tch::Device::Cpu));
        let kept = drop_and_rescale(&change, &random_mask(&[300, 300], 0.25, 7, "x"), 0.25);
        let mean = kept.mean(Kind::Double).double_value(&[]);
        // Its standard deviation is sqrt(3 / 90000) = 0.0058.
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }
}
