//! Reads the number that an answer says.

use fancy_regex::Regex;
use std::sync::LazyLock;

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?<![\w.])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?")
        .expect("a valid pattern")
});

/// Returns the numbers in a text: digits with an optional sign, a decimal point, commas between groups of three digits and an
/// exponent. Commas and a currency sign before it are left out.
pub fn numbers(text: &str) -> Vec<f64> {
    let found = NUMBER.find_iter(text).filter_map(|found| found.ok());
    found.filter_map(|found| found.as_str().replace([',', '$'], "").parse().ok()).collect()
}

/// Returns the last number in a text; `None` if there is none.
pub fn last_number(text: &str) -> Option<f64> {
    numbers(text).last().copied()
}

/// Returns true if `answer` is within `relative` times the size of `expected`, or within `absolute`, of it.
pub fn within(answer: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    (answer - expected).abs() <= absolute.max(relative * expected.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_read_with_sign_groups_and_exponent() {
        for (text, expected) in [
            ("It is 18.", Some(18.0)),
            ("from 3 to $1,234.50 a year", Some(1234.5)),
            ("-0.5", Some(-0.5)),
            ("x = .25", Some(0.25)),
            ("1e-3 m", Some(1e-3)),
            ("12,34", Some(34.0)),
            ("none", None),
            ("B12 is a vitamin", None),
        ] {
            assert_eq!(last_number(text), expected, "{text}");
        }
    }

    #[test]
    fn tolerance_is_the_larger_of_both() {
        assert!(within(101.0, 100.0, 0.01, 0.0) && within(0.1, 0.0, 0.01, 0.1));
        assert!(!within(102.0, 100.0, 0.01, 1.0) && !within(f64::NAN, 1.0, 1.0, 1.0));
    }
}
