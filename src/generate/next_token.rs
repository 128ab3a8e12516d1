//! Logits of the next token of sequences in a cache.

use super::prefill::{PREFILL_TOKENS, prefill};
use crate::error::Result;
use crate::models::Model;
use crate::nn::KvCache;
use tch::Tensor;

/// Returns the logits (S, V) after the last token of each of the cache's sequences; all but that token are in the cache.
/// `last` are the last tokens (S) on the model's device, `sequence` returns all tokens of a sequence. A sequence that outgrows
/// its cached keys is computed again as a whole, as by `generate` of transformers.
pub(super) fn next_logits<'s>(
    model: &Model,
    cache: &mut KvCache,
    last: impl FnOnce() -> Tensor,
    sequence: impl Fn(usize) -> &'s [u32],
) -> Result<Tensor> {
    let again: Vec<bool> = cache.lengths.iter().map(|n| model.outgrows_cache(*n, n + 1)).collect();
    if !again.contains(&true) {
        return model.next_logits(&last(), cache);
    }
    let part = |i: usize| if again[i] { sequence(i) } else { &sequence(i)[sequence(i).len() - 1..] };
    let parts: Vec<&[u32]> = (0..again.len()).map(part).collect();
    (0..again.len()).filter(|i| again[*i]).for_each(|i| _ = cache.truncate(i, 0));
    prefill(model, &parts, cache, PREFILL_TOKENS)
}
