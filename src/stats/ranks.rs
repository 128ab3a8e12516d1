//! Statistics of ranks: how well a score separates two groups, how many it finds with few false alarms, and Spearman's correlation.

use super::moments::correlation;

/// Computes the area under the ROC curve: the share of (good, bad) couples in which the good score is higher; a tie
/// counts as half. `None` if either group is empty.
pub fn auc(good: &[f64], bad: &[f64]) -> Option<f64> {
    let mut sorted = bad.to_vec();
    sorted.sort_by(f64::total_cmp);
    let below = |g: &f64| {
        let (under, not_over) = (sorted.partition_point(|b| b < g), sorted.partition_point(|b| b <= g));
        (under + not_over) as f64 / 2.0
    };
    let couples = good.len() * bad.len();
    (couples > 0).then(|| good.iter().map(below).sum::<f64>() / couples as f64)
}

/// Computes the share of good scores that lie above a threshold which at most the share `most_false` of the bad ones exceeds: the
/// true-positive rate at a low false-positive rate (Carlini et al. 2022, "Membership inference attacks from first principles").
/// Scores at the threshold count as below it. With fewer bad scores than `1 / most_false`, none of them may exceed it. `None` if
/// either group is empty.
pub fn true_positive_rate(good: &[f64], bad: &[f64], most_false: f64) -> Option<f64> {
    let mut sorted = bad.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    // A share that is a whole number of rows may be a little below it in binary.
    let allowed = (most_false * bad.len() as f64 + 1e-9) as usize;
    let threshold = *sorted.get(allowed.min(bad.len().checked_sub(1)?))?;
    let found = good.iter().filter(|score| **score > threshold).count();
    (!good.is_empty()).then(|| found as f64 / good.len() as f64)
}

/// Computes Spearman's correlation of two lists of equal length: that of their ranks, where equal numbers share the mean of
/// theirs. `None` if either is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    correlation(&ranks(a), &ranks(b))
}

/// Returns the rank of each number, from 1.
fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = |x: &f64| (sorted.partition_point(|y| y < x) + sorted.partition_point(|y| y <= x) + 1) as f64 / 2.0;
    numbers.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_numbers_share_a_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 7.0]), [2.5, 1.0, 2.5, 4.0]);
        assert_eq!(spearman(&[1.0, 2.0, 9.0], &[1.0, 10.0, 11.0]), Some(1.0));
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn few_false_alarms_leave_the_scores_above_nearly_all_bad_ones() {
        let bad: Vec<f64> = (0..200).map(f64::from).collect();
        // Two of 200 may exceed the threshold, which is 197.
        let good = [197.0, 197.5, 198.5, 500.0, -1.0];
        assert_eq!(true_positive_rate(&good, &bad, 0.01), Some(0.6));
        assert_eq!(true_positive_rate(&good, &bad, 0.0), Some(0.2), "above 199");
        assert_eq!(true_positive_rate(&[3.0, 5.0], &[4.0], 0.01), Some(0.5), "one bad score: none may exceed it");
        assert_eq!((true_positive_rate(&[], &bad, 0.01), true_positive_rate(&good, &[], 0.01)), (None, None));
        // As scikit-learn's roc_curve: the largest TPR whose FPR is at most 0.1.
        let (good, bad) = ([0.9, 0.8, 0.7, 0.3], [0.85, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02]);
        assert_eq!(true_positive_rate(&good, &bad, 0.1), Some(0.75));
    }

    #[test]
    fn a_good_answer_that_scores_higher_counts_and_a_tie_counts_half() {
        assert_eq!(auc(&[2.0, 1.0], &[0.0, 1.0]), Some(0.875));
        assert_eq!(auc(&[1.0], &[]), None);
        assert_eq!(auc(&[1.0], &[1.0]), Some(0.5));
    }
}
