//! Mixes several sources: decides which examples of each source an epoch contains, and in which order.
//!
//! Without weights, an epoch contains every example once. With weights, it contains as many examples as all sources
//! together have, and each source contributes the share `weight / sum of weights`. Each source is traversed in a random
//! order that continues from epoch to epoch and is shuffled again after each pass. A source that contributes fewer
//! examples than it has therefore contributes others in the next epoch, and one that contributes more repeats no
//! example before all have occurred. The order is a function of (counts, weights, seed, epoch).

use crate::rng;
use rand::seq::SliceRandom;

/// The number of examples of each source, in the order in which examples are numbered, and the weights of the sources.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceMix {
    counts: Vec<usize>,
    /// `None`: every example once per epoch.
    weights: Option<Vec<f64>>,
}

impl SourceMix {
    /// A mix in which each of `count` examples occurs once per epoch.
    pub fn unweighted(count: usize) -> Self {
        Self { counts: vec![count], weights: None }
    }

    /// A mix of sources with these numbers of examples; weights must be finite and above 0.
    pub fn new(counts: Vec<usize>, weights: Option<Vec<f64>>) -> Self {
        Self { counts, weights }
    }

    /// Returns the number of examples of each source in one epoch; rounded so that they add up to the number of all
    /// examples.
    pub fn quotas(&self) -> Vec<usize> {
        let Some(weights) = &self.weights else { return self.counts.clone() };
        let (total, sum) = (self.counts.iter().sum::<usize>(), weights.iter().sum::<f64>());
        let exact: Vec<f64> = weights.iter().map(|w| total as f64 * w / sum).collect();
        let mut quotas: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
        let mut by_rest: Vec<usize> = (0..quotas.len()).collect();
        by_rest.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()));
        let missing = total.saturating_sub(quotas.iter().sum());
        by_rest.into_iter().cycle().take(missing).for_each(|i| quotas[i] += 1);
        quotas
    }

    /// Returns true if epochs may contain different examples.
    pub fn varies(&self) -> bool {
        self.weights.is_some()
    }

    /// Returns the examples of an epoch, in order.
    pub fn order(&self, shuffle: bool, seed: u64, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = match self.weights {
            None => (0..self.counts.iter().sum::<usize>() as u32).collect(),
            Some(_) => self.weighted_order(shuffle, seed, epoch),
        };
        if shuffle {
            order.shuffle(&mut rng::stream(seed, "shuffle", epoch));
        }
        order
    }

    /// Returns the examples of an epoch source by source, each source continuing where the last epoch ended.
    fn weighted_order(&self, shuffle: bool, seed: u64, epoch: u64) -> Vec<u32> {
        let mut drawn = Vec::new();
        let mut first = 0;
        for (source, (count, quota)) in self.counts.iter().zip(self.quotas()).enumerate() {
            let mut left = quota;
            let mut at = epoch as u128 * quota as u128;
            while left > 0 && *count > 0 {
                let (pass, from) = ((at / *count as u128) as u64, (at % *count as u128) as usize);
                let mut own: Vec<u32> = (first..first + *count as u32).collect();
                if shuffle {
                    own.shuffle(&mut rng::stream(seed, &format!("source {source}"), pass));
                }
                let n = left.min(count - from);
                drawn.extend(&own[from..from + n]);
                (left, at) = (left - n, at + n as u128);
            }
            first += *count as u32;
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_weights_an_epoch_is_everything_once() {
        let mix = SourceMix::new(vec![3, 4], None);
        assert_eq!(mix.order(false, 1, 0), [0, 1, 2, 3, 4, 5, 6]);
        let mut shuffled = mix.order(true, 1, 5);
        assert_eq!(shuffled, SourceMix::unweighted(7).order(true, 1, 5), "sources without weights are one");
        shuffled.sort();
        assert_eq!(shuffled, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn each_source_gives_its_share_and_repeats_none_before_all_were_there() {
        let mix = SourceMix::new(vec![10, 90], Some(vec![1.0, 3.0]));
        assert_eq!(mix.quotas(), [25, 75]);
        let mut times = vec![0; 100];
        for epoch in 0..6 {
            let order = mix.order(true, 3, epoch);
            assert_eq!(order.len(), 100);
            assert_eq!(order.iter().filter(|i| **i < 10).count(), 25);
            assert_eq!(order, mix.order(true, 3, epoch), "an epoch can be made again by itself");
            order.iter().for_each(|i| times[*i as usize] += 1);
            for source in [&times[..10], &times[10..]] {
                let (least, most) = (source.iter().min().unwrap(), source.iter().max().unwrap());
                assert!(most - least <= 1, "after epoch {epoch}: {source:?}");
            }
        }
        assert_eq!(times[..10].iter().sum::<i32>(), 150);
        assert_ne!(mix.order(true, 3, 0), mix.order(true, 4, 0));
    }

    #[test]
    fn shares_are_rounded_to_all_examples() {
        for weights in [vec![1.0, 1.0, 1.0], vec![0.1, 0.7, 3.0], vec![1e-9, 1.0, 1.0]] {
            let mix = SourceMix::new(vec![5, 6, 9], Some(weights.clone()));
            assert_eq!(mix.quotas().iter().sum::<usize>(), 20, "{weights:?}");
        }
    }
}
