//! Tests whether a series of numbers changed its level once (Pettitt 1979, "A non-parametric approach to the change-point problem").

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Where a series most likely changed, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChangePoint {
    /// Number of values before the change.
    pub after: usize,
    /// Pettitt's statistic: the largest absolute sum of signs between values before and after a place.
    pub statistic: f64,
    /// The probability of a statistic at least as large if the order of the values is random.
    pub p: f64,
    /// Mean of the values before.
    pub mean_before: f64,
    /// Mean of the values after.
    pub mean_after: f64,
}

/// With fewer values, no order of them would be rare enough to say anything.
pub const FEWEST: usize = 5;
/// Orders that are tried one by one: 8 values have 40,320.
const MOST_EXACT: usize = 8;

/// Looks for one change of the level. The p-value is exact for up to eight values (every order is tried); for more, `draws` random
/// orders are, and the observed one counts as one more. Of equal statistics the first place is returned. `None` for fewer than five
/// values, or if one is not finite.
pub fn pettitt(values: &[f64], draws: usize, rng: &mut ChaCha8Rng) -> Option<ChangePoint> {
    if values.len() < FEWEST || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let (after, statistic) = largest(values);
    let p = if values.len() <= MOST_EXACT {
        let (mut reached, mut orders) = (0usize, 0usize);
        each_order(&mut values.to_vec(), &mut |order| {
            orders += 1;
            reached += usize::from(largest(order).1 >= statistic);
        });
        reached as f64 / orders as f64
    } else {
        let mut order = values.to_vec();
        let mut drawn = || {
            order.shuffle(rng);
            usize::from(largest(&order).1 >= statistic)
        };
        let reached: usize = (0..draws).map(|_| drawn()).sum();
        (reached + 1) as f64 / (draws + 1) as f64
    };
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (mean_before, mean_after) = (mean(&values[..after]), mean(&values[after..]));
    Some(ChangePoint { after, statistic, p, mean_before, mean_after })
}

/// Returns the place at which the sum of signs is largest, and that sum: U(t) = U(t - 1) + the sum over j of sign(x(t) - x(j)).
fn largest(values: &[f64]) -> (usize, f64) {
    let sign = |x: f64| {
        if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    let (mut sum, mut best) = (0.0, (1, 0.0));
    for (t, value) in values[..values.len() - 1].iter().enumerate() {
        sum += values.iter().map(|other| sign(value - other)).sum::<f64>();
        if f64::abs(sum) > best.1 {
            best = (t + 1, f64::abs(sum));
        }
    }
    best
}

/// Calls `f` with every order of the values (Heap's algorithm).
fn each_order(values: &mut Vec<f64>, f: &mut impl FnMut(&[f64])) {
    let n = values.len();
    let mut counts = vec![0; n];
    f(values);
    let mut i = 1;
    while i < n {
        if counts[i] < i {
            values.swap(if i % 2 == 0 { 0 } else { counts[i] }, i);
            f(values);
            counts[i] += 1;
            i = 1;
        } else {
            counts[i] = 0;
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(values: &[f64]) -> Option<ChangePoint> {
        pettitt(values, 20_000, &mut crate::rng::stream(3, "test", 0))
    }

    #[test]
    fn every_order_is_tried_once() {
        let mut seen = std::collections::BTreeSet::new();
        let mut times = 0;
        each_order(&mut vec![1.0, 2.0, 3.0, 4.0, 5.0], &mut |order| {
            times += 1;
            seen.insert(order.iter().map(|x| *x as u8).collect::<Vec<_>>());
        });
        assert_eq!((times, seen.len()), (120, 120));
    }

    #[test]
    fn the_statistic_is_that_of_the_definition() {
        // U(t) = sum over i <= t < j of sign(x(i) - x(j)), for every t.
        let values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.8, 0.9, 0.7];
        let sum = |t: usize| -> f64 {
            let pairs = values[..t].iter().flat_map(|a| values[t..].iter().map(move |b| (a, b)));
            pairs
                .map(|(a, b)| {
                    if a > b {
                        1.0
                    } else if a < b {
                        -1.0
                    } else {
                        0.0
                    }
                })
                .sum()
        };
        let best = (1..values.len()).map(|t| sum(t).abs()).fold(0.0, f64::max);
        let found = found(&values).unwrap();
        assert_eq!(found.statistic, best);
        assert_eq!(
            (found.after, best),
            (4, 20.0),
            "all four before are below all five after; one place further is as good"
        );
        assert!((found.mean_before - 0.225).abs() < 1e-12 && (found.mean_after - 0.76).abs() < 1e-12);
    }

    #[test]
    fn few_values_have_exact_probabilities() {
        // Three below three: |U(3)| = 9, which no other statistic exceeds; of 720 orders, 2 * 3! * 3! = 72 reach it.
        let p = found(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!((p.after, p.statistic, p.p), (3, 9.0, 0.1));
        // Without a change every order is as good as any.
        let same = found(&[2.0; 7]).unwrap();
        assert_eq!((same.statistic, same.p), (0.0, 1.0));
        assert!(found(&[1.0, 2.0, 3.0, 4.0]).is_none() && found(&[1.0, 2.0, f64::NAN, 4.0, 5.0]).is_none());
    }

    #[test]
    fn more_values_have_drawn_ones_near_the_known_approximation() {
        // A step of 10 and 10 values: K = 100; p is about 2 exp(-6 K^2 / (n^3 + n^2)) = 1.6e-3.
        let step: Vec<f64> = (0..20).map(|i| f64::from(i * 7 % 10) / 10.0 + if i < 10 { 0.0 } else { 5.0 }).collect();
        let change = found(&step).unwrap();
        assert_eq!((change.after, change.statistic), (10, 100.0));
        assert!(change.p < 2e-3, "{}", change.p);
        let none: Vec<f64> = (0..20).map(|i| f64::from(i * 7 % 10)).collect();
        assert!(found(&none).unwrap().p > 0.3);
    }
}
