//! Means, standard deviations and the correlation of numbers.
//!
//! *Sample* deviations and variances are divided by n - 1, as in TRL's metrics; those of a *population* by n.

/// Computes the mean; 0 for an empty slice.
pub fn mean(numbers: &[f64]) -> f64 {
    if numbers.is_empty() { 0.0 } else { numbers.iter().sum::<f64>() / numbers.len() as f64 }
}

/// Computes the mean of the finite numbers; NaN if there are none.
pub fn mean_of_finite(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = numbers.into_iter().filter(|x| x.is_finite()).fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
    sum / n
}

/// Computes mean and variance (divided by n - 1); (0, 0) for no numbers, variance 0 for a single one.
pub fn mean_and_sample_variance(numbers: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = numbers.clone().count() as f64;
    if n == 0.0 {
        return (0.0, 0.0);
    }
    let mean = numbers.clone().sum::<f64>() / n;
    let squares: f64 = numbers.map(|x| (x - mean).powi(2)).sum();
    (mean, if n > 1.0 { squares / (n - 1.0) } else { 0.0 })
}

/// Computes the standard deviation (divided by n - 1); 0 for fewer than two numbers.
pub fn sample_deviation(numbers: &[f64]) -> f64 {
    mean_and_sample_variance(numbers.iter().copied()).1.sqrt()
}

/// Computes mean and standard deviation (divided by n); (0, 0) for an empty slice.
pub fn mean_and_population_deviation(numbers: &[f64]) -> (f64, f64) {
    let n = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    (mean, (numbers.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// Computes Pearson's correlation of two lists of equal length; `None` if either is constant.
pub fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let ((mean_a, std_a), (mean_b, std_b)) = (mean_and_population_deviation(a), mean_and_population_deviation(b));
    let sum: f64 = a.iter().zip(b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum();
    (std_a > 0.0 && std_b > 0.0).then(|| sum / a.len() as f64 / (std_a * std_b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_divided_by_n_minus_1_or_by_n() {
        let numbers = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean_and_population_deviation(&numbers), (5.0, 2.0));
        assert_eq!(mean_and_sample_variance(numbers.iter().copied()), (5.0, 32.0 / 7.0));
        assert_eq!(sample_deviation(&numbers), (32f64 / 7.0).sqrt());
        assert_eq!((mean(&[]), sample_deviation(&[]), sample_deviation(&[3.0])), (0.0, 0.0, 0.0));
        assert_eq!(mean_and_population_deviation(&[]), (0.0, 0.0));
    }

    #[test]
    fn a_mean_of_finite_numbers_leaves_out_others() {
        assert_eq!(mean_of_finite([1.0, f64::NAN, 3.0, f64::INFINITY]), 2.0);
        assert!(mean_of_finite([f64::NAN]).is_nan() && mean_of_finite([]).is_nan());
    }

    #[test]
    fn a_constant_has_no_correlation() {
        let slope = correlation(&[1.0, 2.0, 4.0], &[-2.0, -4.0, -8.0]).unwrap();
        assert!((slope + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[1.0, 2.0], &[3.0, 3.0]), None);
    }
}
