//! Runs prompts before their first token is chosen: short ones in one pass, long ones part by part, so that a pass never computes
//! more than a fixed number of tokens.

use crate::error::Result;
use crate::models::Model;
use crate::native::upload_slice;
use crate::nn::{KvCache, Tokens};
use tch::Tensor;

/// Most tokens that one pass computes.
pub const PREFILL_TOKENS: usize = 4096;

/// Runs tokens that continue the cache's last sequences, `parts[i]` for each, none of them empty. Returns the logits (S, V) after the
/// last token of each. A pass computes at most `most` tokens; its results equal those of one pass over all, but for the
/// rounding of sums.
pub fn prefill<S: AsRef<[u32]>>(model: &Model, parts: &[S], cache: &mut KvCache, most: usize) -> Result<Tensor> {
    let parts: Vec<&[u32]> = parts.iter().map(AsRef::as_ref).collect();
    let past = cache.last(parts.len()).to_vec();
    if parts.iter().map(|part| part.len()).sum::<usize>() <= most {
        let tokens = Tokens::pack_after(&parts, &past, model.device());
        return model.extend(&tokens, cache, |out| out.logits(&tokens.segments.last_rows()));
    }
    let with_virtual = |past: i64| if past == 0 { model.virtual_tokens() } else { past };
    let whole: Vec<i64> = past.iter().zip(&parts).map(|(past, part)| with_virtual(*past) + part.len() as i64).collect();
    let (mut done, mut logits) = (vec![0; parts.len()], Vec::new());
    while let Some(first) = (0..parts.len()).find(|i| done[*i] < parts[*i].len()) {
        let mut room = most.max(1);
        let mut chunk: Vec<&[u32]> = vec![&[]; parts.len()];
        let mut ended = Vec::new();
        for i in first..parts.len() {
            let count = (parts[i].len() - done[i]).min(room);
            chunk[i] = &parts[i][done[i]..done[i] + count];
            (room, done[i]) = (room - count, done[i] + count);
            if count > 0 && done[i] == parts[i].len() {
                ended.push(i as i64);
            }
        }
        let tokens = Tokens::pack_after(&chunk, cache.last(parts.len()), model.device());
        let last = || tokens.segments.last_rows().index_select(0, &upload_slice(&ended, model.device()));
        let of_ended = model.extend_part(&tokens, cache, Some(&whole), |out| {
            if ended.is_empty() { None } else { Some(out.logits(&last())) }
        })?;
        logits.extend(of_ended);
    }
    Ok(Tensor::cat(&logits, 0))
}
