//! Logits of the next token of sequences in a cache.

use super::prefill::{PREFILL_TOKENS, prefill};
use crate::error::Result;
use crate::models::{Model, RecordedStep};
use crate::native::{self, Graph};
use crate::nn::KvCache;
use tch::Tensor;

/// Number of steps of the same sequences that are computed before one is recorded. Recording takes the host about as long as a step,
/// and pays off if the sequences go on for another two.
const STEPS_BEFORE: usize = 2;

/// Computes the logits of a batch's next tokens, step by step.
#[derive(Default)]
pub(super) struct NextTokens {
    /// The step of the sequences there are, if the model records steps.
    recorded: Option<RecordedStep>,
    /// An earlier step, whose memory the next recording uses: otherwise each would take memory of its own.
    earlier: Option<Graph>,
    /// Steps since the sequences changed.
    steps: usize,
}

impl NextTokens {
    /// Must be called when sequences come or go, or have other adapters.
    pub fn sequences_changed(&mut self) {
        self.earlier = self.recorded.take().map(RecordedStep::into_graph).or(self.earlier.take());
        self.steps = 0;
    }

    /// Returns the logits (S, V) after the last token of each of the cache's sequences; all but that token are in the cache.
    /// `last` are the last tokens (S) on the model's device, `sequence` returns all tokens of a sequence. A sequence that outgrows
    /// its cached keys is computed again as a whole, as by `generate` of transformers.
    pub fn logits<'s>(
        &mut self,
        model: &Model,
        cache: &mut KvCache,
        last: impl FnOnce() -> Tensor,
        sequence: impl Fn(usize) -> &'s [u32],
    ) -> Result<Tensor> {
        let again: Vec<bool> = cache.lengths.iter().map(|n| model.outgrows_cache(*n, n + 1)).collect();
        if !again.contains(&true) {
            return self.step(model, cache, &last());
        }
        let part = |i: usize| if again[i] { sequence(i) } else { &sequence(i)[sequence(i).len() - 1..] };
        let parts: Vec<&[u32]> = (0..again.len()).map(part).collect();
        (0..again.len()).filter(|i| again[*i]).for_each(|i| _ = cache.truncate(i, 0));
        self.sequences_changed();
        prefill(model, &parts, cache, PREFILL_TOKENS)
    }

    fn step(&mut self, model: &Model, cache: &mut KvCache, last: &Tensor) -> Result<Tensor> {
        if !model.records_passes() {
            return model.next_logits(last, cache);
        }
        if let Some(recorded) = &self.recorded {
            if let Some(logits) = recorded.run(model, last, cache)? {
                return Ok(logits);
            }
            self.sequences_changed(); // its tables were replaced
        }
        self.steps += 1;
        if self.steps <= STEPS_BEFORE {
            return model.next_logits(last, cache);
        }
        let memory = match &self.earlier {
            Some(earlier) => Some(earlier.memory()?),
            None => {
                // What prompts took could not be returned while work is recorded.
                native::release_cached_cuda_memory()?;
                None
            }
        };
        let (recorded, logits) = model.record_next_logits(last, cache, memory)?;
        (self.recorded, self.earlier) = (Some(recorded), None);
        Ok(logits)
    }
}
