//! Tests ft on the user's own model and device (`ft selftest`): two ways to compute the same thing must agree.
//!
//! Decides which ways are compared, and which difference is allowed and why. The checks call the code that trains and
//! generates, never a copy of it. A check has two sides and a comparison; its unit tests break one side on purpose and
//! expect the check to fail. Knows nothing of text: rows are token ids.

mod compare;
mod inference;
mod saving;
mod test_model;
mod training;

pub use compare::{CheckResult, CheckVerdict};

use crate::error::{Error, Result};
use crate::machine::SystemMemory;
use crate::native;
use crate::nn::Weights;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind};
use test_model::TestModel;

/// The model, device and rows to test.
pub struct SelftestInput {
    /// Hugging Face model directory.
    pub model: PathBuf,
    /// Adapter directory; `None` uses a LoRA with random values on all linear layers.
    pub adapter: Option<PathBuf>,
    pub device: Device,
    /// Number format of weights and arithmetic: bf16 or float32.
    pub kind: Kind,
    /// Token ids of a few rows of unequal length.
    pub rows: Vec<Vec<u32>>,
}

/// Texts of the built-in rows: short, of unequal length, with digits, signs and code among the letters.
pub const TEXTS: [&str; 6] = [
    "The Danube rises in the Black Forest and flows 2,850 km to the sea.",
    "Water boils at 100 °C.",
    "fn main() { println!(\"{}\", (1..=10).sum::<u64>()); }",
    "Yes.",
    "She said: “If it rains, we read the letters from 1848 again; if not, we walk to the lake.” It rained.",
    "Frage: Wie viele Tage hat ein Schaltjahr? Antwort: 366.",
];

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
            add(training::differences(&trial)?);
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
    match &reference {
        Some(reference) => add(training::precision(&trial, reference)?),
        None if subject.kind == Kind::Float => add(training::differences(&trial)?),
        None => {}
    }
    drop(reference);
    add(inference::base(&trial, bare)?);
    add(training::accumulation(&trial)?);
    add(training::packing(&trial)?);
    add(inference::isolation(&trial)?);
    add(training::chunked_loss(&trial)?);
    add(inference::cache(&trial)?);
    add(saving::adapter(&trial)?);
    drop(trial);
    match subject.kind != Kind::Float || float32_fits(subject)? {
        true => add(inference::merged(TestModel::load_copied(subject, subject.kind)?)?),
        false => add(CheckResult::skipped(inference::MERGED, TOO_LITTLE_MEMORY)),
    }
    let trial = TestModel::load(subject, subject.kind, DROPOUT)?;
    add(training::replay(&trial)?);
    add(saving::resume(&trial)?);
    Ok(lines)
}

/// The reason shown for checks that are skipped.
const TOO_LITTLE_MEMORY: &str =
    "needs float32, for which too little memory is free: run it on a machine with more, or with --device cpu";

/// Dropout of the adapter in checks where both sides must draw the same random numbers.
const DROPOUT: f64 = 0.1;

/// Returns true if the model in float32, which needs about 5 bytes per parameter, fits into the free memory.
fn float32_fits(subject: &SelftestInput) -> Result<bool> {
    let weights = Weights::open(&subject.model)?;
    let numbers: u64 = weights.names().filter_map(|n| weights.shape(n)).map(|s| s.iter().product::<i64>() as u64).sum();
    let free = match subject.device {
        Device::Cuda(i) => native::cuda_capacity(i)?.0,
        _ => SystemMemory::read().free,
    };
    Ok(5 * numbers < free)
}

/// Returns the usable rows: truncated to `limit` tokens, those shorter than two tokens left out. Fails if a token is
/// not in the vocabulary or fewer than three rows remain.
fn usable_rows(subject: &SelftestInput, limit: i64, vocabulary: i64) -> Result<Vec<Vec<u32>>> {
    let cut = |row: &Vec<u32>| row.iter().copied().take(limit.max(0) as usize).collect::<Vec<_>>();
    let rows: Vec<Vec<u32>> = subject.rows.iter().map(cut).filter(|r| r.len() > 1).collect();
    if let Some(id) = rows.iter().flatten().find(|id| i64::from(**id) >= vocabulary) {
        return Err(Error::user(format!(
            "{}: the tokenizer gives token {id}, but the model's vocabulary ends at {}",
            subject.model.display(),
            vocabulary - 1
        ))
        .hint("is tokenizer.json the one of this model?"));
    }
    if rows.len() < 3 {
        return Err(Error::user(format!(
            "{}: {} rows of two tokens or more, at least 3 expected",
            subject.model.display(),
            rows.len()
        ))
        .hint("is tokenizer.json the one of this model?"));
    }
    Ok(rows)
}

/// Returns the seconds since `began`.
fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;
    use std::path::Path;

    fn subject(kind: Kind) -> SelftestInput {
        let mut chance = crate::rng::stream(0, "selftest", 0);
        let row = |n: &usize| (0..*n).map(|_| chance.random_range(0..512)).collect();
        let rows = [23, 5, 17, 2, 31, 11].iter().map(row).collect();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama");
        SelftestInput { model, adapter: None, device: Device::Cpu, kind, rows }
    }

    /// A tiny model for tests of single checks. Whole runs are tested in tests/it/selftest.rs, in a process of their own:
    /// libtorch's random generator is shared by all tests of a process.
    pub(super) fn tiny(kind: Kind, dropout: f64) -> TestModel {
        tch::set_num_threads(1);
        TestModel::load(&subject(kind), kind, dropout).unwrap()
    }

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
