//! Whether a checkpoint's output head is its embedding, as config.json may claim.
//!
//! A file may hold a head of its own beside `tie_word_embeddings: true`: a copy of the embedding, which old writers left
//! there, or another matrix, which training or another tool made. Transformers 5 compares the two and uses both where they
//! differ; so does ft.

use super::Config;
use crate::error::Result;
use crate::nn::Weights;
use std::path::Path;
use tch::Kind;

pub(super) const HEAD: &str = "lm_head.weight";
/// Rows compared at once.
const ROWS: i64 = 4096;

/// Returns true if the folder's weights hold an output head that differs from the embedding. A folder without weights, or
/// with weights that cannot be opened, has none to tell: whoever loads them says what is wrong.
pub(super) fn parted(folder: &Path, config: &Config) -> Result<bool> {
    let Ok(mut weights) = Weights::open(folder) else { return Ok(false) };
    weights.arrange(config.family().place)?;
    let (Some(head), Some(embedding)) = (weights.get(HEAD), weights.get(config.family().embedding)) else {
        return Ok(false);
    };
    if head.size() != embedding.size() || head.dim() != 2 {
        return Ok(true); // which of the two is wrong is said where they are loaded
    }
    let count = head.size()[0];
    let part = |t: &tch::Tensor, at| t.narrow(0, at, ROWS.min(count - at)).to_kind(Kind::Float);
    Ok((0..count).step_by(ROWS as usize).any(|at| !part(&head, at).equal(&part(&embedding, at))))
}
