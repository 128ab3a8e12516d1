//! The measures of a report card, each computed from scores and lengths alone.

use crate::stats::moments::{correlation, mean_and_population_deviation};
use crate::stats::proportion::Proportion;
use serde::{Deserialize, Serialize};

/// Number of bins of the claimed probability, from 0.5 to 1.
const CLAIMS: usize = 10;
/// Number of bins of margins.
const BARS: usize = 24;

/// A held-out pair and the scores of its two answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredPair {
    /// The score of the chosen answer.
    pub chosen: f64,
    /// The score of the rejected answer.
    pub rejected: f64,
    /// Number of tokens of the chosen and of the rejected answer.
    pub lengths: [usize; 2],
}

impl ScoredPair {
    /// Returns `r_chosen - r_rejected`.
    pub fn margin(&self) -> f64 {
        self.chosen - self.rejected
    }

    /// Returns true if the chosen answer scores higher.
    pub(super) fn right(&self) -> bool {
        self.chosen > self.rejected
    }
}

/// A group of pairs of similar length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthGroup {
    /// Mean number of tokens of the two answers of the group's shortest pair.
    pub from: f64,
    /// Mean number of tokens of the two answers of the group's longest pair.
    pub to: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Share of them that the model gets right.
    pub accuracy: Proportion,
}

/// How well length alone predicts the preference, and how strongly the model follows length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthBias {
    /// Share of pairs that the rule "the longer answer wins" gets right.
    pub longer_wins: f64,
    /// Share of pairs that the rule "the shorter answer wins" gets right; in all other pairs the lengths are equal.
    pub shorter_wins: f64,
    /// Accuracy of the model minus that of the better rule.
    pub gap: f64,
    /// Accuracy on pairs whose chosen answer is the longer one; `None` if there are none.
    pub where_longer: Option<Proportion>,
    /// Accuracy on pairs whose chosen answer is the shorter one; `None` if there are none.
    pub where_shorter: Option<Proportion>,
    /// Correlation between differences of scores and differences of lengths; `None` if either is constant.
    pub correlation: Option<f64>,
}

/// Calibration: whether the claimed probability `sigmoid(|r_chosen - r_rejected|)` is the probability of being right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: mean over pairs of |claimed - observed| of their bin.
    pub ece: f64,
    /// Mean claimed probability minus accuracy: above zero the model is overconfident.
    pub overconfidence: f64,
    /// The bins of the claimed probability that contain pairs.
    pub bins: Vec<CalibrationBin>,
}

/// The pairs whose claimed probability is between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Lower bound of the claimed probability.
    pub from: f64,
    /// Its upper bound.
    pub to: f64,
    /// Number of pairs between the bounds.
    pub pairs: usize,
    /// Mean claimed probability.
    pub claimed: f64,
    /// Share of pairs that the model gets right.
    pub observed: Proportion,
}

/// A histogram of the margins `r_chosen - r_rejected`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MarginHistogram {
    /// Mean margin.
    pub mean: f64,
    /// Standard deviation of the margins.
    pub std: f64,
    /// Lower bound of the first bin.
    pub from: f64,
    /// Width of each bin.
    pub width: f64,
    /// Number of pairs in each bin.
    pub counts: Vec<u64>,
}

/// How scores change without the stop token and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StopTokenEffect {
    /// Number of pairs.
    pub pairs: usize,
    /// Accuracy without the stop token.
    pub accuracy: Proportion,
    /// Accuracy on the same pairs with the stop token.
    pub accuracy_with: f64,
    /// Mean of the change: score without minus score with the stop token.
    pub mean_change: f64,
    /// Mean of the absolute value of the change.
    pub mean_size: f64,
}

/// How scores change if pairs are packed in reverse order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PackingOrderEffect {
    /// Number of pairs.
    pub pairs: usize,
    /// The largest change of a score.
    pub max_difference: f64,
    /// The root mean square of the changes.
    pub rms: f64,
}

/// Computes the share of pairs whose chosen answer scores higher; `None` if there are none.
pub(super) fn accuracy<'a>(pairs: impl IntoIterator<Item = &'a ScoredPair>) -> Option<Proportion> {
    let (mut hits, mut n) = (0, 0);
    for pair in pairs {
        n += 1;
        hits += usize::from(pair.right());
    }
    Proportion::of(hits, n)
}

/// Computes the accuracy of four groups of equally many pairs, by mean length of the two answers.
pub(super) fn by_length(pairs: &[ScoredPair]) -> Vec<LengthGroup> {
    let length = |p: &ScoredPair| (p.lengths[0] + p.lengths[1]) as f64 / 2.0;
    let mut sorted: Vec<ScoredPair> = pairs.to_vec();
    sorted.sort_by(|a, b| length(a).total_cmp(&length(b)));
    let bound = |quarter: usize| quarter * sorted.len() / 4;
    let group = |quarter: usize| {
        let part = &sorted[bound(quarter)..bound(quarter + 1)];
        let (from, to) = (length(part.first()?), length(part.last()?));
        Some(LengthGroup { from, to, pairs: part.len(), accuracy: accuracy(part)? })
    };
    (0..4).filter_map(group).collect()
}

/// Computes how well length alone predicts the preference. `accuracy_of_all` is that of the model on all pairs.
pub(super) fn length_bias(pairs: &[ScoredPair], accuracy_of_all: f64) -> LengthBias {
    let n = pairs.len() as f64;
    let longer = |p: &&ScoredPair| p.lengths[0] > p.lengths[1];
    let shorter = |p: &&ScoredPair| p.lengths[0] < p.lengths[1];
    let longer_wins = pairs.iter().filter(longer).count() as f64 / n;
    let shorter_wins = pairs.iter().filter(shorter).count() as f64 / n;
    let margins: Vec<f64> = pairs.iter().map(ScoredPair::margin).collect();
    let lengths: Vec<f64> = pairs.iter().map(|p| p.lengths[0] as f64 - p.lengths[1] as f64).collect();
    LengthBias {
        longer_wins,
        shorter_wins,
        gap: accuracy_of_all - longer_wins.max(shorter_wins),
        where_longer: accuracy(pairs.iter().filter(longer)),
        where_shorter: accuracy(pairs.iter().filter(shorter)),
        correlation: correlation(&margins, &lengths),
    }
}

/// Computes the calibration of the scores.
pub(super) fn calibration(pairs: &[ScoredPair]) -> Calibration {
    let width = 0.5 / CLAIMS as f64;
    let claim = |p: &ScoredPair| 1.0 / (1.0 + (-p.margin().abs()).exp());
    let place = |p: &ScoredPair| (((claim(p) - 0.5) / width) as usize).min(CLAIMS - 1);
    let mut bins = Vec::new();
    let mut ece = 0.0;
    for i in 0..CLAIMS {
        let part: Vec<&ScoredPair> = pairs.iter().filter(|p| place(p) == i).collect();
        let Some(observed) = accuracy(part.iter().copied()) else { continue };
        let claimed = part.iter().map(|p| claim(p)).sum::<f64>() / part.len() as f64;
        ece += part.len() as f64 / pairs.len() as f64 * (claimed - observed.share).abs();
        let from = 0.5 + width * i as f64;
        bins.push(CalibrationBin { from, to: from + width, pairs: part.len(), claimed, observed });
    }
    let claimed = pairs.iter().map(claim).sum::<f64>() / pairs.len() as f64;
    let observed = accuracy(pairs).map_or(f64::NAN, |r| r.share);
    Calibration { ece, overconfidence: claimed - observed, bins }
}

/// Computes the histogram of the margins; one of its borders is 0.
pub(super) fn histogram(margins: &[f64]) -> MarginHistogram {
    let (mean, std) = mean_and_population_deviation(margins);
    let least = margins.iter().copied().fold(0.0, f64::min);
    let most = margins.iter().copied().fold(0.0, f64::max);
    // Zero is the border between two bins: pairs that the model gets wrong are left of it.
    let width = match (most - least) / (BARS - 1) as f64 {
        w if w > 0.0 && w.is_finite() => w,
        _ => 1.0,
    };
    let from = (least / width).floor() * width;
    let mut counts = vec![0; BARS + 1];
    for m in margins.iter().filter(|m| m.is_finite()) {
        counts[(((m - from) / width) as usize).min(BARS)] += 1;
    }
    while counts.len() > 1 && counts.last() == Some(&0) {
        counts.pop();
    }
    MarginHistogram { mean, std, from, width, counts }
}

/// Computes how scores change if the stop token is cut off; `cut` holds the scores of the first pairs without it.
pub(super) fn without_stop(pairs: &[ScoredPair], cut: &[[f64; 2]]) -> Option<StopTokenEffect> {
    let both: Vec<(&ScoredPair, ScoredPair)> =
        pairs.iter().zip(cut).map(|(p, [c, r])| (p, ScoredPair { chosen: *c, rejected: *r, ..*p })).collect();
    let changes: Vec<f64> = both.iter().flat_map(|(p, q)| [q.chosen - p.chosen, q.rejected - p.rejected]).collect();
    Some(StopTokenEffect {
        pairs: both.len(),
        accuracy: accuracy(both.iter().map(|(_, q)| q))?,
        accuracy_with: accuracy(both.iter().map(|(p, _)| *p))?.share,
        mean_change: mean_and_population_deviation(&changes).0,
        mean_size: mean_and_population_deviation(&changes.iter().map(|c| c.abs()).collect::<Vec<_>>()).0,
    })
}

/// Computes how scores change in reverse packing order; `turned` holds the scores of the first pairs in that order.
pub(super) fn swap(pairs: &[ScoredPair], turned: &[[f64; 2]]) -> Option<PackingOrderEffect> {
    let changes = pairs.iter().zip(turned).flat_map(|(p, [c, r])| [(p.chosen - c).abs(), (p.rejected - r).abs()]);
    let changes: Vec<f64> = changes.collect();
    let worse = |a: f64, b: &f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(*b) };
    let max_difference = changes.iter().fold(0.0, worse);
    let rms = mean_and_population_deviation(&changes.iter().map(|c| c * c).collect::<Vec<_>>()).0.sqrt();
    (!changes.is_empty()).then_some(PackingOrderEffect { pairs: changes.len() / 2, max_difference, rms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_left_of_zero_belong_to_wrong_pairs() {
        let m = histogram(&[-1.0, -0.001, 0.001, 0.5, 3.0, 3.0]);
        let zero = (-m.from / m.width).round() as usize;
        assert_eq!(m.counts[..zero].iter().sum::<u64>(), 2);
        assert_eq!(m.counts[zero..].iter().sum::<u64>(), 4);
        assert_eq!(histogram(&[0.0, 0.0]).counts, [2]);
        let slope = correlation(&[1.0, 2.0, 4.0], &[-2.0, -4.0, -8.0]).unwrap();
        assert!((slope + 1.0).abs() < 1e-12);
    }
}
