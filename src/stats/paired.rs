//! Tests of two models on the same rows: McNemar's, a randomisation test of graded scores, Holm's correction for several of them, and
//! the difference that a number of rows can show.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The normal quantile of a two-sided test at 5 %.
const Z_TEST: f64 = 1.959963984540054;
/// The normal quantile of a power of 80 %.
const Z_POWER: f64 = 0.8416212335729143;

/// Computes the two-sided p-value of McNemar's exact test (McNemar 1947): the probability that rows which only one of two
/// equally good models answers right are split as unevenly as `only_a` to `only_b`, or more so. 1 if there are none.
pub fn mcnemar(only_a: usize, only_b: usize) -> f64 {
    let (n, few) = (only_a + only_b, only_a.min(only_b));
    if n == 0 {
        return 1.0;
    }
    // Logarithms of the binomial coefficients, because 2^n overflows from a thousand rows on.
    let mut coefficient = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = coefficient.exp();
    for k in 0..few {
        coefficient += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
        tail += coefficient.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Computes the two-sided p-value of a randomisation test of paired differences (Fisher 1935): the probability that their sum is at
/// least as far from 0 if each sign is random, as it is between two equally good models. All signs are tried if they are
/// no more than `draws`; otherwise that many are drawn, and the observed ones count as one more. 1 if all are 0.
pub fn sign_flip(differences: &[f64], draws: usize, rng: &mut ChaCha8Rng) -> f64 {
    let differences: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let total: f64 = differences.iter().map(|d| d.abs()).sum();
    // Sums of the same numbers in another order differ in their last bits.
    let observed = differences.iter().sum::<f64>().abs() - 1e-12 * total;
    let far = |sum: f64| usize::from(sum.abs() >= observed);
    let n = differences.len();
    if n < usize::BITS as usize && 1usize << n <= draws {
        let sum =
            |signs: usize| differences.iter().enumerate().map(|(i, d)| if signs >> i & 1 == 1 { -d } else { *d }).sum();
        let count = 1usize << n;
        return (0..count).map(|signs| far(sum(signs))).sum::<usize>() as f64 / count as f64;
    }
    let mut drawn = || -> f64 {
        let part = |part: &[f64], bits: u64| -> f64 {
            part.iter().enumerate().map(|(i, d)| if bits >> i & 1 == 1 { -d } else { *d }).sum()
        };
        differences.chunks(64).map(|chunk| part(chunk, rng.next_u64())).sum()
    };
    let reached: usize = (0..draws).map(|_| far(drawn())).sum();
    (reached + 1) as f64 / (draws + 1) as f64
}

/// Corrects p-values for their number (Holm 1979): each is multiplied by the number of those that are at least as large, and is at
/// least as large as the corrected ones before it. In the order of the input.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let (mut corrected, mut largest) = (vec![0.0; p_values.len()], 0.0f64);
    for (rank, i) in order.into_iter().enumerate() {
        largest = largest.max((p_values[i] * (p_values.len() - rank) as f64).min(1.0));
        corrected[i] = largest;
    }
    corrected
}

/// Returns the mean difference that rows with differences of this standard deviation show in 80 % of all cases, tested at
/// 5 %; `None` without rows.
pub fn detectable_difference(deviation: f64, rows: usize) -> Option<f64> {
    (rows > 0).then(|| (Z_TEST + Z_POWER) * deviation / (rows as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_equals_the_binomial_test() {
        // scipy.stats.binomtest(min(a, b), a + b).pvalue
        for (a, b, p) in [
            (5, 15, 0.041389465332031),
            (1, 9, 0.021484375),
            (0, 0, 1.0),
            (7, 7, 1.0),
            (900, 1100, 8.45708953550381e-06),
        ] {
            let found = mcnemar(a, b);
            assert!((found - p).abs() <= 1e-4 * p, "{a} {b}: {found}");
            assert_eq!(found, mcnemar(b, a));
        }
    }

    #[test]
    fn signs_of_graded_differences_are_tried_or_drawn() {
        let mut rng = crate::rng::stream(1, "test", 0);
        // scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf): 6 of 32 signs.
        let exact = sign_flip(&[0.5, 0.25, 0.0, 0.75, -0.25, 0.5], 9999, &mut rng);
        assert_eq!(exact, 6.0 / 32.0);
        assert_eq!(sign_flip(&[0.0, 0.0], 9999, &mut rng), 1.0);
        // As many ones as McNemar's test counts: the two agree.
        let ones: Vec<f64> = [vec![1.0; 15], vec![-1.0; 5]].concat();
        let drawn = sign_flip(&ones, 99_999, &mut rng);
        assert!((drawn - mcnemar(5, 15)).abs() < 0.003, "{drawn}");
        let far: Vec<f64> = (0..300).map(|i| 1.0 + f64::from(i % 7)).collect();
        assert_eq!(sign_flip(&far, 999, &mut rng), 0.001);
    }

    #[test]
    fn holm_multiplies_by_what_is_left_and_never_falls() {
        let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(holm(&[0.01, 0.04, 0.03, 0.005]), &[0.03, 0.06, 0.06, 0.02]));
        assert!(close(holm(&[0.9, 0.8]), &[1.0, 1.0]));
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn more_rows_show_smaller_differences() {
        let few = detectable_difference(0.5, 100).unwrap();
        assert!((few - 0.14008).abs() < 1e-4, "{few}");
        assert!((detectable_difference(0.5, 400).unwrap() - few / 2.0).abs() < 1e-12);
        assert_eq!(detectable_difference(1.0, 0), None);
    }
}
