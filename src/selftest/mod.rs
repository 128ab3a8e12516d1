//! The self-test: two ways to compute one thing must agree, on the user's own model and device.
//!
//! Owns which ways are compared, how far apart they may lie and why. It computes with the library that trains and
//! answers, never with a copy of it. A check is two sides and a comparison; the tests break one side on purpose and
//! expect the comparison to see it. Knows nothing of text: rows are token ids.

mod compare;
mod inference;
mod learning;
mod saving;
mod trial;

pub use compare::{Line, Verdict};

use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::native;
use crate::nn::Weights;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind};
use trial::Trial;

/// What is tested.
pub struct Subject {
    /// Hugging Face model directory.
    pub model: PathBuf,
    /// Adapter directory; `None`: a LoRA over all linear layers, filled with noise.
    pub adapter: Option<PathBuf>,
    pub device: Device,
    /// Number format of weights and arithmetic: bf16 or float32.
    pub kind: Kind,
    /// Token ids to compute on: a few rows of unequal length.
    pub rows: Vec<Vec<u32>>,
}

/// Built-in rows as text: short, of unequal length, with more than letters in them.
pub const TEXTS: [&str; 6] = [
    "The Danube rises in the Black Forest and flows 2,850 km to the sea.",
    "Water boils at 100 °C.",
    "fn main() { println!(\"{}\", (1..=10).sum::<u64>()); }",
    "Yes.",
    "She said: “If it rains, we read the letters from 1848 again; if not, we walk to the lake.” It rained.",
    "Frage: Wie viele Tage hat ein Schaltjahr? Antwort: 366.",
];

/// Runs every check and tells of each as it ends. Errors are for what keeps the checks from running at all; a check
/// that fails is a line.
pub fn run(subject: &Subject, tell: &mut dyn FnMut(&Line)) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut add = |line: Line| {
        tell(&line);
        lines.push(line);
    };
    let mut reference = None;
    if subject.kind != Kind::Float {
        if float32_fits(subject)? {
            let trial = Trial::load(subject, Kind::Float, 0.0)?;
            reference = Some(trial.whole_step()?);
            add(learning::differences(&trial)?);
            add(learning::packing(&trial)?);
            add(inference::cache(&trial)?);
            add(inference::merged(trial)?);
        } else {
            let why = "needs float32, for which too little memory is free: run it on a machine with more, or with --device cpu";
            for about in [learning::DIFFERENCES, learning::PRECISION] {
                add(Line::skipped(about, why));
            }
        }
    }
    let bare = Trial::bare(subject)?;
    let trial = Trial::load(subject, subject.kind, 0.0)?;
    match &reference {
        Some(reference) => add(learning::precision(&trial, reference)?),
        None if subject.kind == Kind::Float => add(learning::differences(&trial)?),
        None => {}
    }
    drop(reference);
    add(inference::base(&trial, bare)?);
    add(learning::accumulation(&trial)?);
    add(learning::packing(&trial)?);
    add(inference::isolation(&trial)?);
    add(learning::head(&trial)?);
    add(inference::cache(&trial)?);
    add(saving::adapter(&trial)?);
    add(inference::merged(trial)?);
    let trial = Trial::load(subject, subject.kind, DROPOUT)?;
    add(learning::replay(&trial)?);
    add(saving::resume(&trial)?);
    Ok(lines)
}

/// Of the adapter while learning, where chance must be repeated.
const DROPOUT: f64 = 0.1;

/// Whether the model in float32 fits beside nothing else.
fn float32_fits(subject: &Subject) -> Result<bool> {
    let weights = Weights::open(&subject.model)?;
    let numbers: u64 = weights.names().filter_map(|n| weights.shape(n)).map(|s| s.iter().product::<i64>() as u64).sum();
    let free = match subject.device {
        Device::Cuda(i) => native::cuda_capacity(i)?.0,
        _ => Memory::read().free,
    };
    Ok(5 * numbers < free)
}

/// The rows that fit the model: cut at its context, with at least two tokens.
fn fitting(subject: &Subject, limit: i64, vocabulary: i64) -> Result<Vec<Vec<u32>>> {
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

/// Seconds since `began`.
fn seconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;
    use std::path::Path;
    use std::sync::Mutex;

    fn subject(folder: &str, kind: Kind, vocabulary: u32) -> Subject {
        let mut chance = crate::rng::stream(0, "selftest", 0);
        let row = |n: &usize| (0..*n).map(|_| chance.random_range(0..vocabulary)).collect();
        let rows = [23, 5, 17, 2, 31, 11].iter().map(row).collect();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
        Subject { model, adapter: None, device: Device::Cpu, kind, rows }
    }

    pub(super) fn tiny(kind: Kind, dropout: f64) -> Trial {
        tch::set_num_threads(1);
        Trial::load(&subject("tiny-llama", kind, 512), kind, dropout).unwrap()
    }

    /// libtorch's generator is one for the process: tests that need equal dropout run one at a time.
    pub(super) fn with_chance(test: impl FnOnce()) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        test();
    }

    #[test]
    fn sound_models_pass_every_check() {
        with_chance(|| {
            for (folder, vocabulary) in [("tiny-llama", 512), ("biased-llama", 64)] {
                for kind in [Kind::Float, Kind::BFloat16] {
                    let mut told = 0;
                    let lines = run(&subject(folder, kind, vocabulary), &mut |_| told += 1).unwrap();
                    for line in &lines {
                        assert_eq!(line.verdict, Verdict::Passed, "{folder} {kind:?}: {line:?}");
                        assert!(line.difference.is_some() && !line.reason.is_empty(), "{line:?}");
                    }
                    assert_eq!(lines.len(), told);
                    assert_eq!(lines.len(), if kind == Kind::Float { 11 } else { 15 });
                }
            }
        });
    }

    #[test]
    fn rows_that_fit_no_model_are_refused() {
        let mut strange = subject("tiny-llama", Kind::Float, 512);
        strange.rows[1][0] = 512;
        let e = run(&strange, &mut |_| ()).unwrap_err();
        assert!(e.message().contains("token 512") && e.exit_code() == 1, "{e}");
        strange.rows = vec![vec![1], vec![2, 3], vec![]];
        assert!(run(&strange, &mut |_| ()).unwrap_err().message().contains("1 rows of two tokens"));
    }
}
