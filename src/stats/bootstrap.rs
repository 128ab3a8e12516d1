//! Computes bootstrap intervals (Efron 1979) over independent groups: pairs for agreement, prompts for rankings.
//!
//! Many groups are equal as far as a statistic is concerned; equal groups are of one kind. A replicate is therefore a
//! count per kind: how often groups of this kind were sampled. The cost of a statistic grows with the number of kinds,
//! not of groups. Invariant: replicates depend only on the seed, the purpose and the groups.

use crate::rng;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Number of bootstrap replicates, and the random seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Number of replicates.
    pub replicates: u64,
    /// Random seed.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { replicates: 1000, seed: 7 }
    }
}

/// A number with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The statistic of all groups.
    pub value: f64,
    /// Percentiles 2.5 and 97.5 of the replicates; `None` if fewer than half of them have a value.
    pub interval: Option<[f64; 2]>,
}

impl Bootstrap {
    /// Computes `statistic` for each replicate; replicates for which it returns `None` are left out. `statistic` gets
    /// how often each kind was sampled, and a random generator of its own. `groups[i]` is the kind of group i, below
    /// `kinds`.
    pub fn replicates<T>(
        &self,
        purpose: &str,
        groups: &[usize],
        kinds: usize,
        mut statistic: impl FnMut(&[f64], &mut ChaCha8Rng) -> Option<T>,
    ) -> Vec<T> {
        let mut drawn = vec![0.0; kinds];
        let replicate = |i| {
            let mut chance = rng::stream(self.seed, purpose, i);
            drawn.fill(0.0);
            for _ in groups {
                drawn[groups[chance.random_range(0..groups.len())]] += 1.0;
            }
            statistic(&drawn, &mut chance)
        };
        (0..self.replicates).filter_map(replicate).collect()
    }

    /// Computes a statistic of all groups and its interval; `None` if the statistic has no value.
    pub fn estimate(
        &self,
        purpose: &str,
        groups: &[usize],
        kinds: usize,
        statistic: impl Fn(&[f64]) -> Option<f64>,
    ) -> Option<Estimate> {
        let mut all = vec![0.0; kinds];
        groups.iter().for_each(|kind| all[*kind] += 1.0);
        let value = statistic(&all)?;
        let found = self.replicates(purpose, groups, kinds, |drawn, _| statistic(drawn));
        let enough = found.len() as u64 * 2 >= self.replicates && !found.is_empty();
        Some(Estimate { value, interval: enough.then(|| percentiles(found)).flatten() })
    }
}

/// Returns the percentiles 2.5 and 97.5, linearly interpolated; `None` if there are no values.
pub fn percentiles(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| {
        let place = share * last as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        values[below] + part * (values[(below + 1).min(last)] - values[below])
    };
    Some([at(0.025), at(0.975)])
}

/// Computes the percentiles 2.5 and 97.5 of the means of `draws` resamples of `values`, without interpolation; (0, 0)
/// if there are no values.
pub fn mean_interval(values: &[f64], draws: usize, rng: &mut ChaCha8Rng) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut draw = || (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum::<f64>();
    let mut means: Vec<f64> = (0..draws).map(|_| draw() / values.len() as f64).collect();
    means.sort_by(f64::total_cmp);
    (means[draws / 40], means[draws - 1 - draws / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_mean_and_shrinks_with_more_prompts() {
        let interval =
            |gains: &[f64], seed| mean_interval(gains, 10_000, &mut rng::stream(seed, "held-out bootstrap", 0));
        let gains = |n: usize| (0..n).map(|i| f64::from(i as u32 % 4) - 1.0).collect::<Vec<_>>(); // mean 0.5
        let (few, many) = (interval(&gains(40), 1), interval(&gains(1000), 1));
        assert!(few.0 < 0.5 && 0.5 < few.1 && many.0 > few.0 && many.1 < few.1);
        // 1.96 · sqrt(1.25 / 1000) = 0.0693
        assert!((many.1 - many.0 - 2.0 * 0.0693).abs() < 0.01, "{many:?}");
        assert_eq!(interval(&[0.25; 9], 1), (0.25, 0.25));
    }

    fn mean(values: &[f64]) -> impl Fn(&[f64]) -> Option<f64> {
        move |drawn: &[f64]| {
            let n: f64 = drawn.iter().sum();
            (n > 0.0).then(|| drawn.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / n)
        }
    }

    #[test]
    fn percentiles_lie_between_values() {
        assert_eq!(percentiles((0..=40).map(f64::from).collect()), Some([1.0, 39.0]));
        assert_eq!(percentiles(vec![3.0]), Some([3.0, 3.0]));
        assert_eq!(percentiles(Vec::new()), None);
    }

    #[test]
    fn an_interval_of_a_share_is_as_wide_as_theory_says_and_repeats() {
        // 100 groups, 30 of kind 1: the standard error of the share is sqrt(0.3 0.7 / 100) = 0.0458.
        let groups: Vec<usize> = (0..100).map(|i| usize::from(i < 30)).collect();
        let bootstrap = Bootstrap { replicates: 4000, seed: 1 };
        let found = bootstrap.estimate("test", &groups, 2, mean(&[0.0, 1.0])).unwrap();
        let [low, high] = found.interval.unwrap();
        assert_eq!(found.value, 0.3);
        assert!((low - 0.21).abs() < 0.015 && (high - 0.39).abs() < 0.015, "{found:?}");
        assert_eq!(bootstrap.estimate("test", &groups, 2, mean(&[0.0, 1.0])), Some(found));
        let drawn = |seed| Bootstrap { seed, replicates: 9 }.replicates("test", &groups, 2, |w, _| Some(w[1]));
        assert!(drawn(1) == drawn(1) && drawn(1) != drawn(2));
    }

    #[test]
    fn too_few_replicates_with_a_value_give_no_interval() {
        let rarely = |drawn: &[f64]| (drawn[0] >= 8.0).then_some(drawn[0]);
        let found = Bootstrap::default().estimate("test", &[0, 0, 0, 0, 0, 0, 0, 0, 1], 2, rarely).unwrap();
        assert_eq!(found.value, 8.0);
        assert!(found.interval.is_some(), "about two in three replicates");
        let never = |drawn: &[f64]| (drawn[0] == 1.0 && drawn[1] == 1.0 && drawn[2] == 1.0).then_some(1.0);
        assert_eq!(Bootstrap::default().estimate("test", &[0, 1, 2], 3, never).unwrap().interval, None);
        assert_eq!(Bootstrap::default().estimate("test", &[], 0, mean(&[])), None);
    }
}
