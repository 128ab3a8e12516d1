//! Computes a median and an entropy. Statistics that other modules use too are in `crate::stats`.

/// Returns the median, of two middle values the larger one; `None` if there are no values.
pub fn upper_median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Returns the entropy of a binary event with probability `p`, in bits.
pub fn binary_entropy(p: f64) -> f64 {
    let part = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    part(p) + part(1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_and_entropy_is_largest_in_doubt() {
        assert_eq!(upper_median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(upper_median(vec![4.0, 1.0, 3.0, 2.0]), Some(3.0));
        assert_eq!(upper_median(Vec::new()), None);
        assert_eq!([0.0, 0.5, 1.0].map(binary_entropy), [0.0, 1.0, 0.0]);
    }
}
