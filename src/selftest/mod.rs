//! Tests ft on the user's own model and device (`ft selftest`): two ways to compute the same thing must agree.
//!
//! Decides which ways are compared, and which difference is allowed and why. The checks call the code that trains and
//! generates, never a copy of it. A check has two sides and a comparison; its unit tests break one side on purpose and
//! expect the check to fail. Knows nothing of text: rows are token ids.

pub mod compare;
mod inference;
pub mod input;
mod rounding;
mod saving;
mod test_model;
mod training;

use crate::error::Result;
use crate::native;
use compare::{CheckResult, CheckTitle};
use input::{SelftestInput, float32_fits};
use tch::Kind;
use test_model::TestModel;

/// Runs every check and calls `tell` with each result as soon as it is known; returns all results. A failed check is a
/// result, not an error; an error means that the checks could not run.
pub fn run(subject: &SelftestInput, tell: &mut dyn FnMut(&CheckResult)) -> Result<Vec<CheckResult>> {
    let mut lines = Vec::new();
    let mut add = |line: CheckResult| {
        tell(&line);
        lines.push(line);
    };
    let mut reference = None;
    if subject.kind != Kind::Float {
        if float32_fits(subject)? {
            let trial = TestModel::load(subject, Kind::Float, 0.0)?;
            reference = Some(trial.whole_step()?);
            add(differences(&trial)?);
            if trial.model.config().experts.is_some() {
                // Left out in the other format, see below.
                add(training::accumulation(&trial)?);
                add(inference::isolation(&trial)?);
            }
            add(training::packing(&trial)?);
            add(inference::cache(&trial)?);
            drop(trial);
            add(inference::merged(TestModel::load_copied(subject, Kind::Float)?)?);
        } else {
            for about in [training::DIFFERENCES, training::PRECISION] {
                add(CheckResult::skipped(about, TOO_LITTLE_MEMORY));
            }
        }
    }
    let bare = TestModel::base_logits(subject)?;
    let trial = TestModel::load(subject, subject.kind, 0.0)?;
    // Rounding to few bits may send a token to another expert, so two ways that round differently need not agree.
    let jumps = subject.kind != Kind::Float && trial.model.config().experts.is_some();
    let unless_jumping = |about: CheckTitle, check: &dyn Fn() -> Result<CheckResult>| match jumps {
        true => Ok(CheckResult::skipped(about, OTHER_EXPERTS)),
        false => check(),
    };
    match &reference {
        Some(reference) => add(unless_jumping(training::PRECISION, &|| training::precision(&trial, reference))?),
        None if subject.kind == Kind::Float => add(differences(&trial)?),
        None => {}
    }
    drop(reference);
    add(inference::base(&trial, bare)?);
    add(unless_jumping(training::ACCUMULATION, &|| training::accumulation(&trial))?);
    add(unless_jumping(training::PACKING, &|| training::packing(&trial))?);
    if native::cuda::kernels(trial.model.device(), trial.model.kind()).is_some() {
        add(unless_jumping(training::KEPT, &|| training::kept_inputs(&trial))?);
    }
    add(unless_jumping(inference::ISOLATION, &|| inference::isolation(&trial))?);
    add(training::chunked_loss(&trial)?);
    add(unless_jumping(inference::CACHE, &|| inference::cache(&trial))?);
    add(saving::adapter(&trial)?);
    drop(trial);
    match subject.kind != Kind::Float || float32_fits(subject)? {
        _ if jumps => add(CheckResult::skipped(inference::MERGED, OTHER_EXPERTS)),
        true => add(inference::merged(TestModel::load_copied(subject, subject.kind)?)?),
        false => add(CheckResult::skipped(inference::MERGED, TOO_LITTLE_MEMORY)),
    }
    let trial = TestModel::load(subject, subject.kind, DROPOUT)?;
    add(training::replay(&trial)?);
    add(saving::resume(&trial)?);
    Ok(lines)
}

/// Compares gradients with finite differences, if the gradients are meant to be derivatives.
fn differences(trial: &TestModel) -> Result<CheckResult> {
    match trial.spec.is_gradient_exact() {
        true => training::differences(trial),
        false => Ok(CheckResult::skipped(training::DIFFERENCES, LEFT_OUT)),
    }
}

/// The reason why gradients are not compared with finite differences.
const LEFT_OUT: &str =
    "the adapter's gradient leaves out a part on purpose, such as DoRA's norm in its paper and in PEFT";

/// The reason why ways that round differently are not compared in bf16.
const OTHER_EXPERTS: &str = "rounding may send a token to another expert; in float32 they are compared";

/// The reason shown for checks that are skipped.
const TOO_LITTLE_MEMORY: &str =
    "needs float32, for which too little memory is free: run it on a machine with more, or with --device cpu";

/// Dropout of the adapter in checks where both sides must draw the same random numbers.
const DROPOUT: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::test_model::tests::subject;
    use super::*;

    #[test]
    fn rows_that_fit_no_model_are_refused() {
        let mut strange = subject(Kind::Float);
        strange.rows[1][0] = 512;
        let e = run(&strange, &mut |_| ()).unwrap_err();
        assert!(e.message().contains("token 512") && e.exit_code() == 1, "{e}");
        strange.rows = vec![vec![1], vec![2, 3], vec![]];
        assert!(run(&strange, &mut |_| ()).unwrap_err().message().contains("1 rows of two tokens"));
    }
}
