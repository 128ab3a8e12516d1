//! The probability that at least one of several attempts succeeds.

/// Estimates pass@k without bias from `n` attempts of which `passed` succeeded: 1 - C(n - passed, k) / C(n, k) (Chen et al. 2021,
/// arXiv 2107.03374, equation 1), the share of all subsets of k attempts that contain a successful one. `None` if there are fewer
/// than k attempts or k is 0.
pub fn pass_at_k(n: usize, passed: usize, k: usize) -> Option<f64> {
    if k == 0 || k > n || passed > n {
        return None;
    }
    // Every subset has a successful attempt if fewer than k failed. Otherwise the product of factors below 1, which does not overflow.
    let failed = n - passed;
    let all_fail = if failed < k { 0.0 } else { (failed + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>() };
    Some(1.0 - all_fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_the_share_of_subsets_with_a_success() {
        for n in 1..=9usize {
            for passed in 0..=n {
                for k in 1..=n {
                    // Attempts 0 to passed - 1 succeed.
                    let subsets: Vec<u32> = (0..1u32 << n).filter(|s| s.count_ones() as usize == k).collect();
                    let good = subsets.iter().filter(|s| **s & ((1 << passed) - 1) != 0).count();
                    let found = pass_at_k(n, passed, k).unwrap();
                    assert!((found - good as f64 / subsets.len() as f64).abs() < 1e-12, "{n} {passed} {k}: {found}");
                }
            }
        }
    }

    #[test]
    fn large_numbers_do_not_overflow_and_too_few_attempts_have_no_estimate() {
        // 1 - math.comb(195, 100) / math.comb(200, 100)
        assert!((pass_at_k(200, 5, 100).unwrap() - 0.970_308_394_765_706_7).abs() < 1e-12);
        assert_eq!((pass_at_k(3, 1, 4), pass_at_k(3, 1, 0)), (None, None));
    }
}
