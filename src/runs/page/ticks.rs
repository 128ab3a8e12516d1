//! Chooses round values for the labels of axes.

/// Returns the smallest number of the form 1, 2 or 5 times a power of ten that is at least `x`.
pub fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|d| d * power).into_iter().find(|s| *s >= x * 0.999).unwrap_or(x)
}

/// Returns about six whole steps for the labels of the horizontal axis.
pub fn x_ticks(first: f64, last: f64) -> Vec<f64> {
    let step = round_step(((last - first) / 6.0).max(1.0)).max(1.0).round();
    let from = (first / step).ceil() as i64;
    (from..).map(|i| i as f64 * step).take_while(|s| *s <= last).collect()
}

/// Returns about five round values from `low` to `high`.
pub fn round_ticks(low: f64, high: f64) -> Vec<f64> {
    let step = round_step((high - low) / 5.0);
    let first = (low / step - 1e-9).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|t| *t <= high + step * 1e-9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_lie_on_the_axis() {
        assert_eq!(round_ticks(-0.1, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(x_ticks(1.0, 12.0), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    }
}
