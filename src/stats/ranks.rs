//! Statistics of ranks: how well a score separates two groups, and Spearman's correlation.

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
    fn a_good_answer_that_scores_higher_counts_and_a_tie_counts_half() {
        assert_eq!(auc(&[2.0, 1.0], &[0.0, 1.0]), Some(0.875));
        assert_eq!(auc(&[1.0], &[]), None);
        assert_eq!(auc(&[1.0], &[1.0]), Some(0.5));
    }
}
