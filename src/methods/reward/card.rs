//! The report card of a reward model: what its scores on held-out pairs say about whether they can be trusted.
//!
//! Pure functions over scores and lengths. A card is written as report_card.json beside the weights; reinforcement
//! learning reads it and refuses a model below stated limits (`Card::problems`).

use super::measures::{accuracy, by_length, calibration, histogram, length_bias, moments, swap, without_stop};
use crate::error::Result;
use crate::fsutil::read_json;
use crate::methods::rate::Rate;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name beside the weights.
pub const FILE: &str = "report_card.json";

/// A held-out pair and what the model said of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    pub chosen: f64,
    pub rejected: f64,
    /// Tokens of the two answers.
    pub lengths: [usize; 2],
}

/// All that a card is made of.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub pairs: Vec<Judged>,
    /// Scores (chosen, rejected) of the first so many pairs without what ends an answer.
    pub without_stop: Vec<[f64; 2]>,
    /// Scores (chosen, rejected) of the first so many pairs, packed the other way round.
    pub turned: Vec<[f64; 2]>,
}

/// What is known of a reward model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    pub pairs: usize,
    /// Share of pairs whose chosen answer scores higher; a tie is no success.
    pub accuracy: Rate,
    /// The same by mean length of the two answers, four groups of equally many pairs.
    pub by_length: Vec<LengthGroup>,
    pub length: LengthBias,
    pub calibration: Calibration,
    /// `r_chosen - r_rejected`.
    pub margins: Margins,
    /// All scores.
    pub rewards: Spread,
    /// What leaving out the stop token and what follows it changes.
    pub without_stop: Option<WithoutStop>,
    /// What packing the pairs the other way round changes: nothing but rounding.
    pub swap: Option<Swap>,
    pub ft_version: String,
}

/// Pairs of like length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthGroup {
    /// Mean tokens of the two answers, the shortest and the longest pair.
    pub from: f64,
    pub to: f64,
    pub pairs: usize,
    pub accuracy: Rate,
}

/// What length alone tells, and how far the model follows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthBias {
    /// Share of pairs that "the longer answer wins" gets right, and "the shorter answer wins"; the rest are equal.
    pub longer_wins: f64,
    pub shorter_wins: f64,
    /// Accuracy less the better of the two rules.
    pub gap: f64,
    /// Accuracy on pairs whose chosen answer is the longer one, and the shorter one.
    pub where_longer: Option<Rate>,
    pub where_shorter: Option<Rate>,
    /// Correlation of the difference of scores with the difference of lengths; `None` where either never changes.
    pub correlation: Option<f64>,
}

/// Whether `sigmoid(|r_chosen - r_rejected|)` is the probability of being right that it claims to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: mean over pairs of |claimed - observed| of their bin.
    pub ece: f64,
    /// Mean claimed probability less accuracy: above zero the model is too sure.
    pub overconfidence: f64,
    /// Bins of the claimed probability that hold pairs.
    pub bins: Vec<Bin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    pub from: f64,
    pub to: f64,
    pub pairs: usize,
    /// Mean claimed probability.
    pub claimed: f64,
    /// Share of pairs it was right about.
    pub observed: Rate,
}

/// A histogram of margins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    pub mean: f64,
    pub std: f64,
    /// Where the first bin begins, and the width of each.
    pub from: f64,
    pub width: f64,
    pub counts: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub mean: f64,
    pub std: f64,
    pub min: f64,
    pub max: f64,
    pub chosen_mean: f64,
    pub rejected_mean: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WithoutStop {
    pub pairs: usize,
    pub accuracy: Rate,
    /// Accuracy of the same pairs with it.
    pub accuracy_with: f64,
    /// Mean of the score without less the score with, and of its size.
    pub mean_change: f64,
    pub mean_size: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    pub pairs: usize,
    /// The largest change of a score.
    pub max_difference: f64,
    /// The root mean square of the changes.
    pub rms: f64,
}

/// What reinforcement learning asks of a reward model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The lower end of the accuracy's interval lies above this: 0.5, better than a coin.
    pub accuracy: f64,
    /// Accuracy less that of the better length rule lies above this: 0, length alone does no better.
    pub length_gap: f64,
    /// The expected calibration error is at most this: 0.25. Scores far too sure of themselves drown the KL penalty.
    pub ece: f64,
    /// A changed order of packing changes scores by no more than this share of their standard deviation: 0.1, both as root
    /// mean squares. Rounding alone moves single scores further in bfloat16; what matters to a policy is how much of the
    /// differences between answers is noise.
    pub swap: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { accuracy: 0.5, length_gap: 0.0, ece: 0.25, swap: 0.1 }
    }
}

impl Card {
    /// `None` without a pair.
    pub fn of(evidence: &Evidence) -> Option<Self> {
        let pairs = &evidence.pairs;
        let accuracy = accuracy(pairs)?;
        let scores: Vec<f64> = pairs.iter().flat_map(|p| [p.chosen, p.rejected]).collect();
        let (mean, std) = moments(&scores);
        let rewards = Spread {
            mean,
            std,
            min: scores.iter().copied().fold(f64::INFINITY, f64::min),
            max: scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            chosen_mean: moments(&pairs.iter().map(|p| p.chosen).collect::<Vec<_>>()).0,
            rejected_mean: moments(&pairs.iter().map(|p| p.rejected).collect::<Vec<_>>()).0,
        };
        Some(Self {
            pairs: pairs.len(),
            accuracy,
            by_length: by_length(pairs),
            length: length_bias(pairs, accuracy.share),
            calibration: calibration(pairs),
            margins: histogram(&pairs.iter().map(Judged::margin).collect::<Vec<_>>()),
            rewards,
            without_stop: without_stop(pairs, &evidence.without_stop),
            swap: swap(pairs, &evidence.turned),
            ft_version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// The card of a model's folder, if it has one.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Why the model should not be learnt from: what was measured, and what was asked. Empty: nothing speaks against it.
    pub fn problems(&self, limits: &Limits) -> Vec<String> {
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
                "\"the {rule} answer wins\" is right for {share:.3} of the pairs, the model for {:.3}: it need not know more than lengths",
                self.accuracy.share
            ));
        }
        if !above(-self.calibration.ece, -limits.ece - 1e-12) {
            found.push(format!(
                "expected calibration error {:.3}, at most {} asked: scores claim to be right with {:.3}, and are with {:.3}",
                self.calibration.ece,
                limits.ece,
                self.accuracy.share + self.calibration.overconfidence,
                self.accuracy.share
            ));
        }
        if !above(self.rewards.std, 0.0) {
            found.push(format!("every answer scores {:.3}: the model tells nothing apart", self.rewards.mean));
        } else if let Some(swap) = self.swap.filter(|s| !above(-s.rms, -limits.swap * self.rewards.std)) {
            found.push(format!(
                "scores change by {:.3} (one by {:.3}) when pairs are packed the other way round; their standard deviation is {:.3}",
                swap.rms, swap.max_difference, self.rewards.std
            ));
        }
        found
    }

    /// The card in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let Rate { share, interval: [low, high] } = self.accuracy;
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
                if self.calibration.overconfidence > 0.0 { "too sure" } else { "not sure enough" },
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

impl Judged {
    pub fn margin(&self) -> f64 {
        self.chosen - self.rejected
    }

    pub(super) fn right(&self) -> bool {
        self.chosen > self.rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: f64, rejected: f64, lengths: [usize; 2]) -> Judged {
        Judged { chosen, rejected, lengths }
    }

    fn card(pairs: Vec<Judged>) -> Card {
        Card::of(&Evidence { pairs, ..Default::default() }).unwrap()
    }

    /// 3 in 4 right, sure of it with 0.75; lengths tell nothing.
    fn honest(n: usize) -> Vec<Judged> {
        let margin = 3f64.ln(); // sigmoid = 0.75
        let side = |i: usize| if i % 4 == 3 { -margin } else { margin };
        (0..n).map(|i| pair(side(i) / 2.0, -side(i) / 2.0, if i % 2 == 0 { [5, 9 + i] } else { [9 + i, 5] })).collect()
    }

    #[test]
    fn an_honest_model_passes_and_its_numbers_are_right() {
        let card = card(honest(400));
        assert_eq!(card.problems(&Limits::default()), Vec::<String>::new());
        assert_eq!((card.pairs, card.accuracy.share), (400, 0.75));
        assert!(card.calibration.ece < 1e-9 && card.calibration.overconfidence.abs() < 1e-9, "{:?}", card.calibration);
        assert_eq!(card.calibration.bins.len(), 1);
        assert_eq!((card.length.longer_wins, card.length.shorter_wins, card.length.gap), (0.5, 0.5, 0.25));
        assert_eq!(card.by_length.iter().map(|g| g.pairs).sum::<usize>(), 400);
        assert!(card.by_length.windows(2).all(|w| w[0].to <= w[1].from));
        assert_eq!(card.margins.counts.iter().sum::<u64>(), 400);
        assert!(card.rewards.mean.abs() < 1e-12 && (card.rewards.chosen_mean - 3f64.ln() / 4.0).abs() < 1e-12);
        let text = serde_json::to_string(&card).unwrap();
        assert_eq!(serde_json::from_str::<Card>(&text).unwrap(), card);
        assert!(card.lines()[0].contains("400") && card.lines()[0].contains("75.0 %"), "{:?}", card.lines());
    }

    #[test]
    fn each_fault_is_told_by_itself() {
        let limits = Limits::default();
        let one = |card: &Card, word: &str| {
            let found = card.problems(&limits);
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        };
        // Too few pairs to know.
        one(&card(honest(8)), "may be no better than 0.5");
        // The longer answer always wins, and the model says no more.
        let by_length = |p: Judged| Judged { lengths: if p.right() { [9, 5] } else { [5, 9] }, ..p };
        one(&card(honest(400).into_iter().map(by_length).collect()), "the longer answer wins");
        // Ten times too sure.
        let sure = |p: Judged| Judged { chosen: 10.0 * p.chosen, rejected: 10.0 * p.rejected, ..p };
        let told = card(honest(400).into_iter().map(sure).collect());
        assert!((told.calibration.overconfidence - 0.25).abs() < 1e-3);
        one(
            &card(honest(400).into_iter().map(sure).chain((0..40).map(|_| pair(-9.0, 9.0, [5, 5]))).collect()),
            "calibration",
        );
        // The place in the row decides.
        let pairs = honest(400);
        let turned = pairs.iter().map(|p| [p.chosen + 1.0, p.rejected]).collect();
        one(&Card::of(&Evidence { pairs, turned, ..Default::default() }).unwrap(), "packed the other way round");
    }

    #[test]
    fn scores_that_say_nothing_are_refused() {
        let same = card(vec![pair(0.0, 0.0, [3, 4]); 100]);
        assert_eq!(same.accuracy.share, 0.0);
        assert_eq!(same.length.correlation, None);
        let found = same.problems(&Limits::default());
        assert!(found.iter().any(|p| p.contains("tells nothing apart")), "{found:?}");
        let broken = card(vec![pair(f64::NAN, 1.0, [3, 4]); 100]);
        assert!(broken.problems(&Limits::default()).len() >= 3);
        assert_eq!(Card::of(&Evidence::default()), None);
    }

    #[test]
    fn what_the_stop_token_changes_is_measured_on_the_same_pairs() {
        let pairs = honest(40);
        let without_stop = pairs[..20].iter().map(|p| [p.rejected + 1.0, p.chosen + 1.0]).collect();
        let turned = pairs[..4].iter().map(|p| [p.chosen, p.rejected + 1e-3]).collect();
        let card = Card::of(&Evidence { pairs, without_stop, turned }).unwrap();
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
