//! Defines what a selftest runs on: model, device and rows.

use crate::error::{Error, Result};
use crate::machine::SystemMemory;
use crate::models::dtype;
use crate::native;
use std::path::PathBuf;
use tch::{Device, Kind};

/// The model, device and rows to test.
pub struct SelftestInput {
    /// Hugging Face model directory or GGUF file.
    pub model: PathBuf,
    /// Adapter directory; `None` uses a LoRA with random values on all linear layers.
    pub adapter: Option<PathBuf>,
    /// The device to test.
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

/// Returns true if the model in float32, which needs about 5 bytes per parameter, fits into the free memory.
pub(super) fn float32_fits(subject: &SelftestInput) -> Result<bool> {
    let numbers = dtype::stored_kind_and_count(&subject.model)?.1;
    let free = match subject.device {
        Device::Cuda(i) => native::cuda_capacity(i)?.0,
        _ => SystemMemory::read().free,
    };
    Ok(5 * numbers < free)
}

/// Returns the usable rows: truncated to `limit` tokens, those shorter than two tokens left out. Fails if a token is
/// not in the vocabulary or fewer than three rows remain.
pub(super) fn usable_rows(subject: &SelftestInput, limit: i64, vocabulary: i64) -> Result<Vec<Vec<u32>>> {
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
