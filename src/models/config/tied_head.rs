//! Checks whether a checkpoint's output head really is its embedding when config.json has `tie_word_embeddings: true`.
//!
//! The weights may contain a head nevertheless: a copy of the embedding, left there by old writers, or a different
//! matrix, made by training or another tool. transformers 5 compares the two and uses both if they differ; so does
//! ft.

use crate::error::Result;
use crate::models::family::Config;
use crate::nn::Weights;
use std::path::Path;
use tch::Kind;

pub(in crate::models) const HEAD: &str = "lm_head.weight";
/// Number of rows compared at once.
const ROWS: i64 = 4096;

/// Returns true if the folder's weights contain an output head that differs from the embedding. Returns false for a
/// folder without weights or with weights that cannot be opened: loading them reports the problem.
pub(super) fn head_differs(folder: &Path, config: &Config) -> Result<bool> {
    let Ok(mut weights) = Weights::open(folder) else { return Ok(false) };
    weights.map_names(config.family().map_param)?;
    let (Some(head), Some(embedding)) = (weights.get(HEAD), weights.get(config.family().embedding)) else {
        return Ok(false);
    };
    if head.size() != embedding.size() || head.dim() != 2 {
        return Ok(true); // loading them reports which of the two is wrong
    }
    let count = head.size()[0];
    let part = |t: &tch::Tensor, at| t.narrow(0, at, ROWS.min(count - at)).to_kind(Kind::Float);
    Ok((0..count).step_by(ROWS as usize).any(|at| !part(&head, at).equal(&part(&embedding, at))))
}
