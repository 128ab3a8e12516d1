//! Two policies on the same prompts: how much more reward the second earns, and whether that may be chance.

use crate::rng;
use rand::RngExt;
use serde::Serialize;

/// Draws of the bootstrap.
const DRAWS: usize = 10_000;

/// Rewards after against rewards before, prompt by prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub prompts: usize,
    pub before: f64,
    pub after: f64,
    /// Mean of after minus before.
    pub difference: f64,
    /// Its 95 % interval: percentiles of the means of prompts drawn with replacement (Efron 1979), pairs kept together.
    pub interval: [f64; 2],
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
    /// Share of prompts on which the second earns more; a tie counts half.
    pub win_rate: f64,
}

impl Comparison {
    /// `None` of no prompts. The same seed gives the same interval.
    pub fn of(before: &[f64], after: &[f64], seed: u64) -> Option<Self> {
        assert_eq!(before.len(), after.len(), "the same prompts");
        let n = before.len();
        if n == 0 {
            return None;
        }
        let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
        let count = |f: fn(f64) -> bool| differences.iter().filter(|d| f(**d)).count();
        let (wins, losses) = (count(|d| d > 0.0), count(|d| d < 0.0));
        let ties = n - wins - losses;
        Some(Self {
            prompts: n,
            before: mean(before),
            after: mean(after),
            difference: mean(&differences),
            interval: interval(&differences, seed),
            wins,
            ties,
            losses,
            win_rate: (wins as f64 + 0.5 * ties as f64) / n as f64,
        })
    }
}

/// The 2.5 and 97.5 percentiles of the mean under resampling.
fn interval(differences: &[f64], seed: u64) -> [f64; 2] {
    let (n, mut rng) = (differences.len(), rng::stream(seed, "bootstrap", 0));
    let mut means: Vec<f64> = (0..DRAWS)
        .map(|_| (0..n).map(|_| differences[rng.random_range(0..n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    [0.025, 0.975].map(|q| means[(q * (DRAWS - 1) as f64).round() as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_mean() {
        let mut rng = rng::stream(3, "tests: compare", 0);
        let noise: Vec<f64> = (0..400).map(|_| (0..12).map(|_| rng.random_range(-0.5..0.5)).sum()).collect();
        let after: Vec<f64> = noise.iter().map(|x| x + 0.3).collect();
        let c = Comparison::of(&vec![0.0; 400], &after, 7).unwrap();
        let mean = after.iter().sum::<f64>() / 400.0;
        let error = (after.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 400.0 / 400.0).sqrt();
        assert!((c.difference - mean).abs() < 1e-12);
        // The normal interval, to the noise of ten thousand draws.
        for (ours, theirs) in c.interval.iter().zip([mean - 1.96 * error, mean + 1.96 * error]) {
            assert!((ours - theirs).abs() < 0.15 * error, "{ours} {theirs} {error}");
        }
        assert_eq!(Comparison::of(&vec![0.0; 400], &after, 7).unwrap(), c);
    }

    #[test]
    fn prompts_are_compared_one_by_one() {
        // The same spread on both sides: unpaired it would hide the difference.
        let before: Vec<f64> = (0..50).map(|i| f64::from(i) * 10.0).collect();
        let after: Vec<f64> = before.iter().enumerate().map(|(i, x)| x + if i % 5 == 0 { -1.0 } else { 1.0 }).collect();
        let c = Comparison::of(&before, &after, 7).unwrap();
        assert_eq!((c.wins, c.ties, c.losses), (40, 0, 10));
        assert!((c.difference - 0.6).abs() < 1e-12 && c.interval[0] > 0.3 && c.interval[1] < 0.9, "{c:?}");
        let tied = Comparison::of(&before, &before, 7).unwrap();
        assert_eq!((tied.win_rate, tied.interval), (0.5, [0.0, 0.0]));
        assert_eq!(Comparison::of(&[], &[], 7), None);
    }
}
