//! Measures whether a model's confidence in its choices is how often it is right.

use crate::eval::baselines::right_choices;
use crate::eval::results::{ItemAnswer, ItemInfo};
use crate::stats::classification::softmax;
use crate::stats::proportion::Proportion;

/// Number of bins of the confidence, from 0 to 1.
const BINS: usize = 10;

/// The items whose confidence lies between two bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfidenceBin {
    /// Number of items.
    pub items: usize,
    /// Mean confidence: the probability of the chosen one among the choices.
    pub confidence: f64,
    /// The share of items that are right.
    pub right: Proportion,
}

/// Confidence and how often it was justified.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceCalibration {
    /// Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): the mean over items of
    /// |confidence - share of right ones| of their bin.
    pub error: f64,
    /// Mean confidence minus the share of right answers; above 0 the model is overconfident.
    pub overconfidence: f64,
    /// The bins that contain items, in ascending order.
    pub bins: Vec<ConfidenceBin>,
}

impl ChoiceCalibration {
    /// Measures answers to items with choices, by the choice with the highest log-likelihood; `None` if there is no such item. Items
    /// without a right choice and with log-likelihoods that are not finite are left out.
    pub fn of(items: &[ItemInfo], answers: &[ItemAnswer]) -> Option<Self> {
        let mut bins: Vec<Vec<(f64, bool)>> = vec![Vec::new(); BINS];
        for (item, answer) in items.iter().zip(answers) {
            let (right, p) = (right_choices(item), softmax(&answer.log_likelihoods));
            if right.is_empty() || p.is_empty() || p.iter().any(|p| !p.is_finite()) {
                continue;
            }
            let best = (0..p.len()).rev().max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap_or(0);
            // Open below and closed above.
            let bin = ((p[best] * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            bins[bin].push((p[best], right.contains(&best)));
        }
        let all: Vec<(f64, bool)> = bins.iter().flatten().copied().collect();
        let bins: Vec<ConfidenceBin> = bins.iter().filter_map(|bin| ConfidenceBin::of(bin)).collect();
        let total = ConfidenceBin::of(&all)?;
        let gap = |bin: &ConfidenceBin| bin.items as f64 * (bin.confidence - bin.right.share).abs();
        let error = bins.iter().map(gap).sum::<f64>() / total.items as f64;
        Some(Self { error, overconfidence: total.confidence - total.right.share, bins })
    }
}

impl ConfidenceBin {
    fn of(items: &[(f64, bool)]) -> Option<Self> {
        let right = Proportion::of(items.iter().filter(|(_, right)| *right).count(), items.len())?;
        let confidence = items.iter().map(|(confidence, _)| confidence).sum::<f64>() / items.len() as f64;
        Some(Self { items: items.len(), confidence, right })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn asked(right: &str) -> ItemInfo {
        let choices = ["a", "b", "c"].map(String::from).to_vec();
        ItemInfo { line: 1, prompt: "?".into(), expected: vec![right.into()], category: None, group: None, choices }
    }

    fn answered(p: [f64; 3]) -> ItemAnswer {
        ItemAnswer {
            text: "a".into(),
            scores: BTreeMap::new(),
            log_likelihoods: p.map(|p| p.ln() - 70.0).to_vec(),
            finish_reason: None,
            ..Default::default()
        }
    }

    #[test]
    fn confidence_is_compared_with_how_often_it_was_right() {
        let items = [asked("a"), asked("a"), asked("b"), asked("c")];
        let answers = [[0.91, 0.045, 0.045], [0.92, 0.04, 0.04], [0.93, 0.035, 0.035], [0.2, 0.2, 0.6]].map(answered);
        let found = ChoiceCalibration::of(&items, &answers).unwrap();
        assert_eq!(found.bins.iter().map(|b| b.items).collect::<Vec<_>>(), [1, 3]);
        assert!((found.bins[1].confidence - 0.92).abs() < 1e-9 && (found.bins[1].right.share - 2.0 / 3.0).abs() < 1e-9);
        let error = (3.0 * (0.92 - 2.0 / 3.0) + (1.0 - 0.6)) / 4.0;
        assert!((found.error - error).abs() < 1e-9, "{found:?}");
        assert!((found.overconfidence - ((0.9 + 0.92 + 0.94 + 0.6) / 4.0 - 0.75)).abs() < 1e-9);
        assert_eq!(ChoiceCalibration::of(&[], &[]), None);
        let unknown = [answered([f64::NAN, 0.5, 0.5])];
        assert_eq!(ChoiceCalibration::of(&[asked("a")], &unknown), None);
    }

    #[test]
    fn probabilities_of_very_unlikely_choices_do_not_vanish() {
        assert_eq!(softmax(&[-2000.0, -2000.0]), [0.5, 0.5]);
        assert!(softmax(&[]).is_empty());
    }
}
