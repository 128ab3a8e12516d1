//! Compares two results of the same computation: their difference, and the line that reports it with its tolerance.

use super::rounding::Tolerance;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Kind, Tensor};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// The difference is within the tolerance.
    Passed,
    /// The difference is larger than the tolerance, or NaN.
    Failed,
    /// The check could not run; `reason` says why.
    Skipped,
}

/// Name of a check, and the two sides that it compares.
pub type CheckTitle = (&'static str, &'static str);

/// One check, as it is reported to the user and in JSON.
#[derive(Debug, Clone, Serialize)]
pub struct CheckResult {
    /// The check's name.
    pub name: &'static str,
    /// The number format that it computed in; empty if it was skipped.
    pub dtype: &'static str,
    /// Describes the two sides that were compared.
    pub compared: &'static str,
    /// The largest difference, relative to the expected values; `None` if it was skipped.
    pub difference: Option<f64>,
    /// The tensor, position or number with the largest difference.
    pub at: String,
    /// The largest difference that passes.
    pub tolerance: f64,
    /// Why the tolerance has this value; for a skipped check, why it was skipped.
    pub reason: String,
    /// Whether it passed.
    pub verdict: CheckVerdict,
    /// How long the check took.
    pub seconds: f64,
}

impl CheckResult {
    pub(super) fn skipped((name, compared): CheckTitle, why: &str) -> Self {
        let verdict = CheckVerdict::Skipped;
        Self {
            name,
            dtype: "",
            compared,
            difference: None,
            at: String::new(),
            tolerance: 0.0,
            reason: why.into(),
            verdict,
            seconds: 0.0,
        }
    }
}

/// The largest relative difference found, and where. NaN passes no tolerance.
#[derive(Debug, Clone, Default)]
pub struct LargestDifference {
    /// Relative to the expected values.
    pub relative: f64,
    /// The tensor, position or number where it was found.
    pub at: String,
}

impl LargestDifference {
    /// Returns the larger of both; NaN counts as the largest.
    pub fn larger(self, other: LargestDifference) -> LargestDifference {
        if other.relative.is_nan() || other.relative > self.relative { other } else { self }
    }

    fn of(relative: f64, at: impl Into<String>) -> LargestDifference {
        LargestDifference { relative, at: at.into() }
    }
}

/// Compares two numbers; the difference is relative to `b`.
pub fn compare_numbers(what: &str, a: f64, b: f64) -> LargestDifference {
    LargestDifference::of(if a == b { 0.0 } else { (a - b).abs() / b.abs() }, what)
}

/// Compares tensors by name: for each, norm of the difference / norm of the tensor in `b`. The divisor is at least a
/// thousandth of the mean norm, because a much smaller tensor consists of rounding errors of that size.
pub fn compare_tensors(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> LargestDifference {
    let norm = |t: &Tensor| t.to_kind(Kind::Double).norm().double_value(&[]);
    let norms: BTreeMap<&String, f64> = b.iter().map(|(n, t)| (n, norm(t))).collect();
    let mean = norms.values().sum::<f64>() / norms.len().max(1) as f64;
    let mut worst = LargestDifference::default();
    for (name, expected) in b {
        let gap = match a.get(name).filter(|t| t.size() == expected.size()) {
            Some(found) => {
                let apart = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
                if apart == 0.0 { 0.0 } else { apart / norms[name].max(1e-3 * mean) }
            }
            None => f64::INFINITY,
        };
        worst = worst.larger(LargestDifference::of(gap, name.as_str()));
    }
    let same = a.len() == b.len() && !b.is_empty();
    worst.larger(LargestDifference::of(if same { 0.0 } else { f64::INFINITY }, "other tensors on one side"))
}

/// Compares all tensors as one long vector.
pub fn compare_joined(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> LargestDifference {
    let square = |t: &Tensor| t.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    if !a.keys().eq(b.keys()) || b.is_empty() {
        return LargestDifference::of(f64::INFINITY, "other tensors on one side");
    }
    let apart: f64 = b.iter().map(|(n, t)| square(&(&a[n] - t))).sum();
    LargestDifference::of((apart / b.values().map(square).sum::<f64>()).sqrt(), "the whole gradient")
}

/// Compares two tables (N, V): norm of a row's difference / norm of the row in `b`, for the row where it is largest.
pub fn compare_rows(a: &Tensor, b: &Tensor) -> LargestDifference {
    if a.size() != b.size() {
        return LargestDifference::of(f64::INFINITY, format!("shapes {:?} and {:?}", a.size(), b.size()));
    }
    let norm = |t: &Tensor| t.norm_scalaropt_dim(2.0, [-1i64].as_slice(), false);
    let gaps = norm(&(a - b)) / norm(b);
    let worst = gaps.argmax(0, false); // NaN counts as the largest
    LargestDifference::of(gaps.take(&worst).double_value(&[]), format!("position {}", worst.int64_value(&[])))
}

/// Returns the line of a check: passed if `gap` is within the tolerance.
pub fn check_result(about: CheckTitle, gap: LargestDifference, tolerance: Tolerance, began: Instant) -> CheckResult {
    let (name, compared) = about;
    let verdict = if gap.relative <= tolerance.limit { CheckVerdict::Passed } else { CheckVerdict::Failed };
    CheckResult {
        name,
        dtype: tolerance.dtype,
        compared,
        difference: Some(gap.relative),
        at: gap.at,
        tolerance: tolerance.limit,
        reason: tolerance.reason,
        verdict,
        seconds: began.elapsed().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rounding::Rounding;
    use super::*;
    use tch::Device;

    #[test]
    fn gaps_name_the_worst_and_nan_is_the_widest() {
        let map = |x: f32, y: f32| {
            BTreeMap::from([("x".to_string(), Tensor::from_slice(&[x, 1.0])), ("y".into(), Tensor::from_slice(&[y]))])
        };
        let gap = compare_tensors(&map(1.0, 2.02), &map(1.0, 2.0));
        assert!((gap.relative - 0.01).abs() < 1e-6 && gap.at == "y", "{gap:?}");
        assert!(compare_tensors(&map(f32::NAN, 3.0), &map(1.0, 2.0)).relative.is_nan());
        assert_eq!(compare_tensors(&BTreeMap::new(), &map(1.0, 2.0)).relative, f64::INFINITY);
        assert_eq!(compare_tensors(&BTreeMap::new(), &BTreeMap::new()).relative, f64::INFINITY, "nothing was compared");
        let b = Tensor::from_slice(&[3f32, 4.0, 3.0, 4.0]).view([2, 2]);
        let a = Tensor::from_slice(&[3f32, 4.0, 3.0, 4.5]).view([2, 2]);
        let gap = compare_rows(&a, &b);
        assert!((gap.relative - 0.1).abs() < 1e-6 && gap.at == "position 1", "{gap:?}");
        assert_eq!(compare_rows(&b, &b).relative, 0.0);
        assert!(compare_rows(&(&b * f64::NAN), &b).relative.is_nan());
        let exact = Rounding { kind: Kind::Float, depth: 2, device: Device::Cpu }.exact("for a test");
        for (relative, verdict) in
            [(0.0, CheckVerdict::Passed), (1e-30, CheckVerdict::Failed), (f64::NAN, CheckVerdict::Failed)]
        {
            let gap = LargestDifference { relative, at: String::new() };
            assert_eq!(check_result(("", ""), gap, exact.clone(), Instant::now()).verdict, verdict);
        }
    }
}
