//! A proportion of rows, with a confidence interval.

use serde::{Deserialize, Serialize};

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959963984540054;

/// A proportion of rows with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// The share, from 0 to 1.
    pub share: f64,
    /// Wilson score interval (Wilson 1927): also correct near 0 and 1 and for few rows.
    pub interval: [f64; 2],
}

impl Proportion {
    /// Computes the proportion of `hits` in `n` rows; `None` if `n` is 0.
    pub fn of(hits: usize, n: usize) -> Option<Self> {
        if n == 0 {
            return None;
        }
        let (n, p) = (n as f64, hits as f64 / n as f64);
        let (scale, z2) = (1.0 + Z * Z / n, Z * Z / n);
        let centre = (p + z2 / 2.0) / scale;
        let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt() / scale;
        Some(Self { share: p, interval: [(centre - half).max(0.0), (centre + half).min(1.0)] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval_equals_published_values() {
        // Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let [a, b] = Proportion::of(hits, n).unwrap().interval;
            assert!((a - low).abs() < 6e-5 && (b - high).abs() < 6e-5, "{hits}/{n}: {a} {b}");
        }
        assert_eq!(Proportion::of(7, 7).unwrap().interval[1], 1.0);
        assert_eq!(Proportion::of(0, 0), None);
    }
}
