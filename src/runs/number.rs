//! Formats numbers of a run for people.

/// Formats a number as `0.0123` or `1.20e-7`, and NaN (no value) as `-`.
pub fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "-".into(),
        x if x == 0.0 || (1e-3..1e6).contains(&x.abs()) => format!("{x:.4}"),
        x => format!("{x:.2e}"),
    }
}
