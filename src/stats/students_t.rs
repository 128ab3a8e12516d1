//! Student's t distribution, for intervals of means of few numbers, such as those of runs that differ in their seed.

use super::moments::mean_and_sample_variance;
use serde::Serialize;

/// Mean and spread of a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Number of values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, divided by n - 1; `None` for a single value.
    pub deviation: Option<f64>,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// 95 % interval of the mean by Student's t; `None` for a single value.
    pub interval: Option<[f64; 2]>,
}

impl Spread {
    /// Computes mean and spread; `None` without values or if one is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let alike = values.iter().all(|value| *value == values[0]);
        let (mean, variance) = match alike {
            true => (values[0], 0.0),
            false => mean_and_sample_variance(values.iter().copied()),
        };
        let several = values.len() > 1;
        let half = || quantile_975(values.len() - 1) * (variance / values.len() as f64).sqrt();
        Some(Self {
            count: values.len(),
            mean,
            deviation: several.then(|| variance.sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            interval: several.then(|| [mean - half(), mean + half()]),
        })
    }
}

/// Returns the quantile 0.975 of Student's t distribution with this many degrees of freedom, at least 1, by bisection.
pub fn quantile_975(freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, 13.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if central(middle, freedom) < 0.95 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// Returns the probability that |T| is at most `t`: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn central(t: f64, freedom: usize) -> f64 {
    let n = freedom as f64;
    let angle = (t / n.sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    let square = cosine * cosine;
    if freedom % 2 == 1 {
        let (mut term, mut sum) = (cosine, 0.0);
        for k in (1..freedom).step_by(2) {
            sum += term;
            term *= square * (k + 1) as f64 / (k + 2) as f64;
        }
        2.0 / std::f64::consts::PI * (angle + sine * sum)
    } else {
        let (mut term, mut sum) = (1.0, 0.0);
        for k in (0..freedom).step_by(2) {
            sum += term;
            term *= square * (k + 1) as f64 / (k + 2) as f64;
        }
        sine * sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // scipy.stats.t.ppf(0.975, n)
        for (freedom, expected) in [
            (1, 12.706204736174694),
            (2, 4.302652729749462),
            (3, 3.1824463053),
            (4, 2.7764451051977987),
            (9, 2.2621571628),
            (30, 2.0422724563012373),
            (201, 1.971836506779859),
        ] {
            assert!((quantile_975(freedom) - expected).abs() < 1e-8, "{freedom}: {}", quantile_975(freedom));
        }
    }

    #[test]
    fn a_spread_of_three_seeds_is_wide() {
        let found = Spread::of(&[0.6, 0.7, 0.8]).unwrap();
        assert!((found.mean - 0.7).abs() < 1e-12 && (found.deviation.unwrap() - 0.1).abs() < 1e-12);
        let [low, high] = found.interval.unwrap();
        assert!((high - low - 2.0 * 4.302652729749462 * 0.1 / 3f64.sqrt()).abs() < 1e-8);
        assert_eq!((found.min, found.max, found.count), (0.6, 0.8, 3));
        let same = Spread::of(&[0.825; 3]).unwrap();
        assert_eq!((same.mean, same.deviation, same.interval), (0.825, Some(0.0), Some([0.825; 2])));
        let one = Spread::of(&[0.5]).unwrap();
        assert_eq!((one.mean, one.deviation, one.interval), (0.5, None, None));
        assert!(Spread::of(&[]).is_none() && Spread::of(&[f64::NAN]).is_none());
    }
}
