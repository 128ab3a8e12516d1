//! The report card of a reward model: measures on held-out pairs that say whether its scores can be trusted.
//!
//! Pure functions of scores and lengths. A card is written as report_card.json next to the weights; reinforcement
//! learning reads it and refuses a model beyond stated limits (`ReportCard::problems`).

use super::measures::{
    Calibration, LengthBias, LengthGroup, MarginHistogram, PackingOrderEffect, ScoredPair, StopTokenEffect, accuracy,
    by_length, calibration, histogram, length_bias, swap, without_stop,
};
use crate::error::Result;
use crate::fsutil::read_json;
use crate::stats::moments::mean_and_population_deviation;
use crate::stats::proportion::Proportion;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in the model's folder.
pub const FILE: &str = "report_card.json";

/// All scores that a report card is computed from.
#[derive(Debug, Clone, Default)]
pub struct HeldOutScores {
    /// All pairs.
    pub pairs: Vec<ScoredPair>,
    /// Scores (chosen, rejected) of the first pairs, without the stop token and what follows it.
    pub without_stop: Vec<[f64; 2]>,
    /// Scores (chosen, rejected) of the first pairs, packed in reverse order.
    pub reversed: Vec<[f64; 2]>,
}

/// The measures of a reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportCard {
    /// Number of held-out pairs.
    pub pairs: usize,
    /// Share of pairs whose chosen answer scores higher; a tie counts as wrong.
    pub accuracy: Proportion,
    /// The same by mean length of the two answers, in four groups of equally many pairs.
    pub by_length: Vec<LengthGroup>,
    /// How far length alone explains preference and scores.
    pub length: LengthBias,
    /// Whether claimed probabilities are right.
    pub calibration: Calibration,
    /// `r_chosen - r_rejected`.
    pub margins: MarginHistogram,
    /// All scores.
    pub rewards: ScoreSpread,
    /// How scores change without the stop token and what follows it.
    pub without_stop: Option<StopTokenEffect>,
    /// How scores change if the pairs are packed in reverse order: only by rounding, if nothing is wrong.
    pub swap: Option<PackingOrderEffect>,
    /// The version of ft that wrote the card.
    pub ft_version: String,
}

/// Mean, standard deviation and range of the scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScoreSpread {
    /// Mean of all scores.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// The lowest score.
    pub min: f64,
    /// The highest score.
    pub max: f64,
    /// Mean score of chosen answers.
    pub chosen_mean: f64,
    /// Mean score of rejected answers.
    pub rejected_mean: f64,
}

/// The limits that a reward model must keep before reinforcement learning accepts it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReportCardLimits {
    /// The lower end of the accuracy's interval must be above this. 0.5: better than guessing.
    pub accuracy: f64,
    /// Accuracy minus that of the better length rule must be above this. 0: better than length alone.
    pub length_gap: f64,
    /// The expected calibration error must be at most this: 0.25. Overconfident scores outweigh the KL penalty.
    pub ece: f64,
    /// The change of scores by the order of packing, divided by the standard deviation of scores (both root mean
    /// squares), must be at most this: 0.1. Rounding alone may change a single score more in bfloat16; what matters to
    /// a policy is how much of the differences between answers is noise.
    pub swap: f64,
}

impl Default for ReportCardLimits {
    fn default() -> Self {
        Self { accuracy: 0.5, length_gap: 0.0, ece: 0.25, swap: 0.1 }
    }
}

impl ReportCard {
    /// Computes the report card; `None` if there are no pairs.
    pub fn of(evidence: &HeldOutScores) -> Option<Self> {
        let pairs = &evidence.pairs;
        let accuracy = accuracy(pairs)?;
        let scores: Vec<f64> = pairs.iter().flat_map(|p| [p.chosen, p.rejected]).collect();
        let (mean, std) = mean_and_population_deviation(&scores);
        let rewards = ScoreSpread {
            mean,
            std,
            min: scores.iter().copied().fold(f64::INFINITY, f64::min),
            max: scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            chosen_mean: mean_and_population_deviation(&pairs.iter().map(|p| p.chosen).collect::<Vec<_>>()).0,
            rejected_mean: mean_and_population_deviation(&pairs.iter().map(|p| p.rejected).collect::<Vec<_>>()).0,
        };
        Some(Self {
            pairs: pairs.len(),
            accuracy,
            by_length: by_length(pairs),
            length: length_bias(pairs, accuracy.share),
            calibration: calibration(pairs),
            margins: histogram(&pairs.iter().map(ScoredPair::margin).collect::<Vec<_>>()),
            rewards,
            without_stop: without_stop(pairs, &evidence.without_stop),
            swap: swap(pairs, &evidence.reversed),
            ft_version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// Reads the report card from a model's folder; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Returns why no policy should be trained with this model: each measure that is beyond its limit. Empty if there
    /// is no such reason.
    pub fn problems(&self, limits: &ReportCardLimits) -> Vec<String> {
        let mut found = Vec::new();
        let (low, high) = (self.accuracy.interval[0], self.accuracy.interval[1]);
        let above = |value: f64, limit: f64| value > limit; // false for NaN
        if !above(low, limits.accuracy) {
            found.push(format!(
                "accuracy {:.3} on {} pairs (95 % {low:.3} to {high:.3}) may be no better than {}",
                self.accuracy.share, self.pairs, limits.accuracy
            ));
        }
        if !above(self.length.gap, limits.length_gap) {
            let LengthBias { longer_wins, shorter_wins, .. } = self.length;
            let (rule, share) =
                if longer_wins >= shorter_wins { ("longer", longer_wins) } else { ("shorter", shorter_wins) };
            found.push(format!(
                "\"the {rule} answer wins\" is right for {share:.3} of the pairs, the model for {:.3}: it may judge by \
                 length alone",
                self.accuracy.share
            ));
        }
        if !above(-self.calibration.ece, -limits.ece - 1e-12) {
            found.push(format!(
                "expected calibration error {:.3}, the limit is {}: the model claims to be right with probability \
                 {:.3} and is right with {:.3}",
                self.calibration.ece,
                limits.ece,
                self.accuracy.share + self.calibration.overconfidence,
                self.accuracy.share
            ));
        }
        if !above(self.rewards.std, 0.0) {
            found.push(format!("every answer scores {:.3}: the model distinguishes nothing", self.rewards.mean));
        } else if let Some(swap) = self.swap.filter(|s| !above(-s.rms, -limits.swap * self.rewards.std)) {
            found.push(format!(
                "scores change by {:.3} (a single one by {:.3}) if pairs are packed in reverse order; their standard \
                 deviation is {:.3}",
                swap.rms, swap.max_difference, self.rewards.std
            ));
        }
        found
    }

    /// Summarises the card in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let Proportion { share, interval: [low, high] } = self.accuracy;
        let mut lines = vec![
            format!(
                "report card on {} held-out pairs: accuracy {} (95 % {} to {})",
                self.pairs,
                percent(share),
                percent(low),
                percent(high)
            ),
            format!(
                "  length alone: longer wins {}, shorter wins {}; accuracy by length {}",
                percent(self.length.longer_wins),
                percent(self.length.shorter_wins),
                self.by_length.iter().map(|g| percent(g.accuracy.share)).collect::<Vec<_>>().join(", "),
            ),
            format!(
                "  calibration error {:.3} ({}); scores {:.2} ± {:.2}",
                self.calibration.ece,
                if self.calibration.overconfidence > 0.0 { "overconfident" } else { "underconfident" },
                self.rewards.mean,
                self.rewards.std,
            ),
        ];
        if let Some(w) = self.without_stop {
            lines.push(format!(
                "  without the stop token: accuracy {}, scores {:+.2}",
                percent(w.accuracy.share),
                w.mean_change
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: f64, rejected: f64, lengths: [usize; 2]) -> ScoredPair {
        ScoredPair { chosen, rejected, lengths }
    }

    fn card(pairs: Vec<ScoredPair>) -> ReportCard {
        ReportCard::of(&HeldOutScores { pairs, ..Default::default() }).unwrap()
    }

    /// Pairs of which 3 in 4 are right, with a claimed probability of 0.75; lengths say nothing.
    fn honest(n: usize) -> Vec<ScoredPair> {
        let margin = 3f64.ln(); // sigmoid = 0.75
        let side = |i: usize| if i % 4 == 3 { -margin } else { margin };
        (0..n).map(|i| pair(side(i) / 2.0, -side(i) / 2.0, if i % 2 == 0 { [5, 9 + i] } else { [9 + i, 5] })).collect()
    }

    #[test]
    fn an_honest_model_passes_and_its_numbers_are_right() {
        let card = card(honest(400));
        assert_eq!(card.problems(&ReportCardLimits::default()), Vec::<String>::new());
        assert_eq!((card.pairs, card.accuracy.share), (400, 0.75));
        assert!(card.calibration.ece < 1e-9 && card.calibration.overconfidence.abs() < 1e-9, "{:?}", card.calibration);
        assert_eq!(card.calibration.bins.len(), 1);
        assert_eq!((card.length.longer_wins, card.length.shorter_wins, card.length.gap), (0.5, 0.5, 0.25));
        assert_eq!(card.by_length.iter().map(|g| g.pairs).sum::<usize>(), 400);
        assert!(card.by_length.windows(2).all(|w| w[0].to <= w[1].from));
        assert_eq!(card.margins.counts.iter().sum::<u64>(), 400);
        assert!(card.rewards.mean.abs() < 1e-12 && (card.rewards.chosen_mean - 3f64.ln() / 4.0).abs() < 1e-12);
        let text = serde_json::to_string(&card).unwrap();
        assert_eq!(serde_json::from_str::<ReportCard>(&text).unwrap(), card);
        assert!(card.lines()[0].contains("400") && card.lines()[0].contains("75.0 %"), "{:?}", card.lines());
    }

    #[test]
    fn each_problem_is_reported_by_itself() {
        let limits = ReportCardLimits::default();
        let one = |card: &ReportCard, word: &str| {
            let found = card.problems(&limits);
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        };
        // Too few pairs for a tight interval.
        one(&card(honest(8)), "may be no better than 0.5");
        // The longer answer always wins, and the model is no better than that rule.
        let by_length = |p: ScoredPair| ScoredPair { lengths: if p.right() { [9, 5] } else { [5, 9] }, ..p };
        one(&card(honest(400).into_iter().map(by_length).collect()), "the longer answer wins");
        // Scores ten times too large.
        let sure = |p: ScoredPair| ScoredPair { chosen: 10.0 * p.chosen, rejected: 10.0 * p.rejected, ..p };
        let told = card(honest(400).into_iter().map(sure).collect());
        assert!((told.calibration.overconfidence - 0.25).abs() < 1e-3);
        one(
            &card(honest(400).into_iter().map(sure).chain((0..40).map(|_| pair(-9.0, 9.0, [5, 5]))).collect()),
            "calibration",
        );
        // The position in the row changes the score.
        let pairs = honest(400);
        let turned = pairs.iter().map(|p| [p.chosen + 1.0, p.rejected]).collect();
        one(
            &ReportCard::of(&HeldOutScores { pairs, reversed: turned, ..Default::default() }).unwrap(),
            "packed in reverse order",
        );
    }

    #[test]
    fn scores_that_say_nothing_are_refused() {
        let same = card(vec![pair(0.0, 0.0, [3, 4]); 100]);
        assert_eq!(same.accuracy.share, 0.0);
        assert_eq!(same.length.correlation, None);
        let found = same.problems(&ReportCardLimits::default());
        assert!(found.iter().any(|p| p.contains("distinguishes nothing")), "{found:?}");
        let broken = card(vec![pair(f64::NAN, 1.0, [3, 4]); 100]);
        assert!(broken.problems(&ReportCardLimits::default()).len() >= 3);
        assert_eq!(ReportCard::of(&HeldOutScores::default()), None);
    }

    #[test]
    fn the_effect_of_the_stop_token_is_measured_on_the_same_pairs() {
        let pairs = honest(40);
        let without_stop = pairs[..20].iter().map(|p| [p.rejected + 1.0, p.chosen + 1.0]).collect();
        let turned = pairs[..4].iter().map(|p| [p.chosen, p.rejected + 1e-3]).collect();
        let card = ReportCard::of(&HeldOutScores { pairs, without_stop, reversed: turned }).unwrap();
        let w = card.without_stop.unwrap();
        assert_eq!((w.pairs, w.accuracy.share, w.accuracy_with), (20, 0.25, 0.75));
        assert!((w.mean_change - 1.0).abs() < 1e-12);
        let swap = card.swap.unwrap();
        assert!(
            swap.pairs == 4
                && (swap.max_difference - 1e-3).abs() < 1e-9
                && (swap.rms - 1e-3 / 2f64.sqrt()).abs() < 1e-9
        );
    }
}
