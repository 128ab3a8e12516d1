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
    "The Danube rises in the Black Forest and flows east for 2,850 km before it reaches the sea.",
    "Water boils at 100 °C.",
    "fn main() { println!(\"{}\", (1..=10).map(|n| n * n).sum::<u64>()); }",
    "Yes.",
    "She said: “If it rains tomorrow, we stay at home, read the letters from 1848 again, and write to your sister; \
     if not, we walk to the lake.” Nobody answered, for everybody knew that it would rain.",
    "Frage: Wie viele Tage hat ein Schaltjahr? Antwort: 366, einen mehr als die anderen.",
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
    if subject.kind == Kind::Float || float32_fits(subject)? {
        let trial = Trial::load(subject, Kind::Float)?;
        add(learning::differences(&trial)?);
        if subject.kind != Kind::Float {
            reference = Some(trial.whole_step()?);
            add(inference::merged(trial)?);
        }
    } else {
        let why = "float32 needs more memory than is free: run it on a machine with more, or with --device cpu";
        for (name, compared) in [learning::DIFFERENCES, inference::MERGED, learning::PRECISION] {
            add(Line::skipped(name, compared, why));
        }
    }
    let bare = Trial::bare(subject)?;
    let trial = Trial::load(subject, subject.kind)?;
    if let Some(reference) = &reference {
        add(learning::precision(&trial, reference)?);
    }
    drop(reference);
    add(inference::base(&trial, bare)?);
    add(learning::accumulation(&trial)?);
    add(learning::packing(&trial)?);
    add(inference::isolation(&trial)?);
    add(learning::replay(&trial)?);
    add(learning::head(&trial)?);
    add(inference::cache(&trial)?);
    add(saving::adapter(&trial)?);
    add(saving::resume(&trial)?);
    add(inference::merged(trial)?);
    Ok(lines)
}

/// Whether the model in float32 fits beside nothing else.
fn float32_fits(subject: &Subject) -> Result<bool> {
    let weights = Weights::open(&subject.model)?;
    let numbers: u64 =
        weights.names().filter_map(|n| weights.shape(n)).map(|s| s.iter().product::<i64>() as u64).sum();
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
