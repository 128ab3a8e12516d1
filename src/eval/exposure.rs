//! Measures how far a model has memorised canaries: texts that were put into the training rows for that purpose (Carlini et al.
//! 2019, "The Secret Sharer", USENIX Security).

use crate::stats::moments::mean_and_population_deviation;
use serde::Serialize;
use std::f64::consts::{LN_2, PI};

/// How exposed a canary is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exposure {
    /// Rank of the canary by its loss among itself and the texts that it could have been, from 1.
    pub rank: usize,
    /// log2 of the number of texts minus log2 of the rank, in bits (definition 5 of the paper).
    pub bits: f64,
    /// The largest exposure that as many texts can show, in bits. A canary that reaches it may be exposed further.
    pub most: f64,
}

/// Computes the exposure of a canary from its loss and the losses of other texts of the same form that were not trained on. A text
/// with an equal loss counts as likelier. `None` without other texts or if a loss is NaN.
pub fn exposure(canary: f64, others: &[f64]) -> Option<Exposure> {
    if others.is_empty() || canary.is_nan() || others.iter().any(|loss| loss.is_nan()) {
        return None;
    }
    let rank = 1 + others.iter().filter(|loss| **loss <= canary).count();
    let most = ((others.len() + 1) as f64).log2();
    Some(Exposure { rank, bits: most - (rank as f64).log2(), most })
}

/// Computes the exposure of a canary beyond what the number of other texts can show: the losses of the others are taken for a sample
/// of a skewed normal distribution, fitted by its first three moments, and the exposure is minus log2 of the probability of a loss that
/// is at most the canary's (section 4.4 of the paper). `None` with fewer than ten other texts, if they are all equal, or if a loss is
/// not finite.
pub fn fitted_exposure(canary: f64, others: &[f64]) -> Option<f64> {
    /// Fewer losses say nothing about the shape of their distribution.
    const FEWEST: usize = 10;
    /// No skewed normal distribution has a skewness of 0.9953 or more.
    const MOST_SKEWED: f64 = 0.99;
    if others.len() < FEWEST || !others.iter().chain([&canary]).all(|loss| loss.is_finite()) {
        return None;
    }
    let (mean, deviation) = mean_and_population_deviation(others);
    let cubes = others.iter().map(|loss| (loss - mean).powi(3)).sum::<f64>() / others.len() as f64;
    let skewness = (cubes / deviation.powi(3)).clamp(-MOST_SKEWED, MOST_SKEWED);
    let ratio = (skewness.abs() / ((4.0 - PI) / 2.0)).powf(2.0 / 3.0);
    let delta = skewness.signum() * (PI / 2.0 * ratio / (1.0 + ratio)).sqrt();
    let scale = deviation / (1.0 - 2.0 * delta * delta / PI).sqrt();
    let place = mean - scale * delta * (2.0 / PI).sqrt();
    let shape = delta / (1.0 - delta * delta).sqrt();
    (deviation > 0.0).then(|| -log_skewed_probability((canary - place) / scale, shape) / LN_2)
}

/// Returns the natural logarithm of the probability that a standard skewed normal number is at most `z`, by Simpson's rule on the
/// logarithm of its density, so that far tails do not vanish.
fn log_skewed_probability(z: f64, shape: f64) -> f64 {
    const STEPS: usize = 8000;
    /// Beyond this distance below the smaller of z and 0, the density is smaller than at its end by a factor of e^-72.
    const REACH: f64 = 12.0;
    let width = (z.max(0.0) + REACH) / STEPS as f64;
    let log_density = |t: f64| LN_2 - t * t / 2.0 - (2.0 * PI).ln() / 2.0 + log_normal_probability(shape * t);
    let logs: Vec<f64> = (0..=STEPS).map(|i| log_density(z - width * i as f64)).collect();
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |i: usize| if i == 0 || i == STEPS { 1.0 } else { [2.0, 4.0][i % 2] };
    let sum: f64 = logs.iter().enumerate().map(|(i, log)| weight(i) * (log - most).exp()).sum();
    (most + (sum * width / 3.0).ln()).min(0.0)
}

/// Returns the natural logarithm of the probability that a standard normal number is at most `x`: by its series, and by a continued
/// fraction in the lower tail (Abramowitz and Stegun, 26.2.11 and 26.2.14).
fn log_normal_probability(x: f64) -> f64 {
    let log_density = -x * x / 2.0 - (2.0 * PI).ln() / 2.0;
    if x < -3.0 {
        let fraction = (1..=120).rev().fold(-x, |below, k| -x + f64::from(k) / below);
        return log_density - fraction.ln();
    }
    if x > 8.0 {
        return 0.0;
    }
    let (mut term, mut sum, mut k) = (x, 0.0f64, 1.0);
    while term.abs() > 1e-18 * sum.abs().max(1e-300) && k < 400.0 {
        sum += term;
        k += 2.0;
        term *= x * x / k;
    }
    (0.5 + log_density.exp() * sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_that_no_other_text_beats_has_all_bits() {
        let others: Vec<f64> = (0..1023).map(|i| 2.0 + f64::from(i)).collect();
        assert_eq!(exposure(1.0, &others), Some(Exposure { rank: 1, bits: 10.0, most: 10.0 }));
        assert_eq!(exposure(1e9, &others).unwrap().bits, 0.0, "the least likely of all");
        let middle = exposure(2.0 + 510.5, &others).unwrap();
        assert_eq!((middle.rank, middle.bits), (512, 1.0), "a text that was not trained on has about one bit");
        assert_eq!(exposure(2.0, &others).unwrap().rank, 2);
        assert_eq!((exposure(1.0, &[]), exposure(f64::NAN, &[1.0]), exposure(1.0, &[f64::NAN])), (None, None, None));
    }

    #[test]
    fn far_tails_have_the_probabilities_of_a_skewed_normal_distribution() {
        // -log2 of the integral of the density, by mpmath with 40 digits.
        for (shape, z, bits) in [
            (0.0, -3.0, 9.53293385132),
            (2.0, -2.0, 21.6010707278),
            (-3.0, -4.0, 13.9464670377),
            (1.5, -8.0, 160.000619782),
            (4.0, 0.5, 1.37950863287),
            (-1.0, 3.0, 2.62891692725e-6),
        ] {
            let found = -log_skewed_probability(z, shape) / LN_2;
            assert!((found - bits).abs() <= 1e-9 * f64::max(bits, 1.0), "{shape} {z}: {found} {bits}");
        }
    }

    #[test]
    fn a_fitted_exposure_goes_beyond_the_number_of_texts() {
        let others: Vec<f64> =
            (0..400).map(|i| f64::from((i * 37) % 101) / 101.0 * 3.0 + f64::from((i * i) % 17) / 17.0).collect();
        let found = fitted_exposure(-1.0, &others).unwrap();
        assert!((found - 10.1777868767).abs() < 1e-6, "{found}");
        assert!(found > exposure(-1.0, &others).unwrap().most, "log2 of 401 is 8.6");
        assert!(fitted_exposure(-3.0, &others).unwrap() > found);
        assert_eq!((fitted_exposure(1.0, &[1.0; 20]), fitted_exposure(1.0, &[1.0, 2.0])), (None, None));
    }
}
