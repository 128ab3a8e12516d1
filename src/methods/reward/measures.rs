//! The measures of a report card, each computed from scores and lengths alone.

use super::report_card::{
    Calibration, CalibrationBin, LengthBias, LengthGroup, MarginHistogram, PackingOrderEffect, ScoredPair,
    StopTokenEffect,
};
use crate::stats::moments::{correlation, mean_and_population_deviation};
use crate::stats::proportion::Proportion;

/// Number of bins of the claimed probability, from 0.5 to 1.
const CLAIMS: usize = 10;
/// Number of bins of margins.
const BARS: usize = 24;

pub(super) fn accuracy<'a>(pairs: impl IntoIterator<Item = &'a ScoredPair>) -> Option<Proportion> {
    let (mut hits, mut n) = (0, 0);
    for pair in pairs {
        n += 1;
        hits += usize::from(pair.right());
    }
    Proportion::of(hits, n)
}

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
    }
}
