//! Tests whether two models differ in exact match on the same rows.

use super::run::EvalAnswer;
use crate::stats::moments::sample_deviation;
use crate::stats::paired::{detectable_difference, holm, mcnemar};
use serde::Serialize;

/// The rows that only one of two models answers right, and what they say about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MatchTest {
    /// Rows that only this model answers right.
    pub only_this: usize,
    /// Rows that only the base answers right.
    pub only_base: usize,
    /// Two-sided p-value of McNemar's exact test.
    pub p: f64,
    /// The p-value corrected for the number of models compared with the base (Holm).
    pub p_corrected: f64,
    /// The difference of exact match that as many rows show in 80 % of all cases; `None` without rows.
    pub detectable: Option<f64>,
}

impl MatchTest {
    /// Tests each model's answers against those of the base to the same prompts.
    pub fn of_each(models: &[&[EvalAnswer]], base: &[EvalAnswer]) -> Vec<Self> {
        let mut tests: Vec<Self> = models.iter().map(|answers| Self::of(answers, base)).collect();
        let corrected = holm(&tests.iter().map(|test| test.p).collect::<Vec<_>>());
        tests.iter_mut().zip(corrected).for_each(|(test, p)| test.p_corrected = p);
        tests
    }

    fn of(answers: &[EvalAnswer], base: &[EvalAnswer]) -> Self {
        let pairs = || answers.iter().zip(base).map(|(a, b)| (a.matched, b.matched));
        let count = |wanted| pairs().filter(|pair| *pair == wanted).count();
        let (only_this, only_base) = (count((true, false)), count((false, true)));
        let differences: Vec<f64> = pairs().map(|(a, b)| f64::from(u8::from(a)) - f64::from(u8::from(b))).collect();
        let p = mcnemar(only_this, only_base);
        let detectable = detectable_difference(sample_deviation(&differences), differences.len());
        Self { only_this, only_base, p, p_corrected: p, detectable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn answers(matched: &[bool]) -> Vec<EvalAnswer> {
        let answer = |matched: &bool| EvalAnswer {
            prompt: Value::Null,
            expected: String::new(),
            text: String::new(),
            matched: *matched,
            finish_reason: "stop",
            loss: 0.0,
        };
        matched.iter().map(answer).collect()
    }

    #[test]
    fn rows_that_both_or_neither_answer_say_nothing() {
        let base = answers(&[true, false, false, false, false, false, false, true]);
        let better = answers(&[true, true, true, true, true, true, true, true]);
        let [test, same] = MatchTest::of_each(&[&better, &base], &base)[..] else { panic!("two models") };
        assert_eq!((test.only_this, test.only_base), (6, 0));
        assert!((test.p - 2.0 / 64.0).abs() < 1e-12 && (test.p_corrected - 4.0 / 64.0).abs() < 1e-12, "{test:?}");
        assert_eq!((same.only_this, same.only_base, same.p, same.p_corrected), (0, 0, 1.0, 1.0));
        assert!(test.detectable.unwrap() > 0.0);
    }
}
