//! Formats values for the page.

use serde_json::Value;

/// Curves with fewer steps are drawn without smoothing.
pub const FEW: usize = 8;

/// Returns the number of steps that a smoothed value is the mean of.
pub fn window(steps: usize) -> usize {
    (steps / 20).clamp(3, 401) | 1
}

/// Formats a number with about three digits.
pub fn short(x: f64) -> String {
    match x {
        x if !x.is_finite() => "not finite".into(),
        0.0 => "0".into(),
        x if x.abs() >= 1000.0 || x.abs() < 1e-3 => format!("{x:.1e}"),
        x if x.abs() >= 100.0 => format!("{x:.0}"),
        x if x.abs() >= 10.0 => format!("{x:.1}"),
        x if x.abs() >= 0.1 => format!("{x:.2}"),
        x => format!("{x:.3}"),
    }
}

/// Formats a JSON value; a text without its quotes.
pub fn json(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Returns the first 16 digits of a SHA-256.
pub fn short_sha(sha256: &str) -> &str {
    sha256.get(..16).unwrap_or(sha256)
}
