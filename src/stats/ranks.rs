//! Statistics of ranks: how well a score separates two groups.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_answer_that_scores_higher_counts_and_a_tie_counts_half() {
        assert_eq!(auc(&[2.0, 1.0], &[0.0, 1.0]), Some(0.875));
        assert_eq!(auc(&[1.0], &[]), None);
        assert_eq!(auc(&[1.0], &[1.0]), Some(0.5));
    }
}
