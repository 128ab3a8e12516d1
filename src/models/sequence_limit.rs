//! The longest sequences that a model computes, and the check of each row against them.

use super::model::Model;
use crate::error::{Error, Result};
use crate::nn::{RopeScaling, Tokens};

impl Model {
    /// Returns the length of the longest sequence that can be computed, if there is a limit: the number of position
    /// embeddings, less the virtual tokens of the active adapter.
    pub fn context_limit(&self) -> Option<i64> {
        Some((self.decoder.longest()? - self.virtual_tokens()).max(0))
    }

    /// Returns the length of the longest sequence that the model was made for: its context limit, or the positions that
    /// config.json names if they are fewer.
    pub fn longest_sequence(&self) -> Option<i64> {
        let made_for = self.config.max_position_embeddings.map(|n| (n - self.virtual_tokens()).max(0));
        [self.context_limit(), made_for].into_iter().flatten().min()
    }

    /// Returns true if a sequence that grows, or was cut, from `before` to `after` tokens needs other keys than those in a
    /// cache, because its keys are rotated by other frequencies then (LongRoPE). Virtual tokens count.
    pub fn outgrows_cache(&self, before: i64, after: i64) -> bool {
        let switch = self.decoder.rotation_switch();
        switch.is_some_and(|n| before > 0 && (before > n) != (after > n))
    }

    /// Returns true if a token is rotated alike in sequences of any length, so that a sequence may be computed in parts, each as
    /// long as what was computed so far.
    pub fn rotates_alike(&self) -> bool {
        self.rotates_alike_up_to(i64::MAX)
    }

    /// Returns true if a token is rotated alike in sequences of up to `length` tokens.
    pub fn rotates_alike_up_to(&self, length: i64) -> bool {
        let own = std::iter::once(&self.config.rope_scaling);
        own.chain(self.config.local_rope.as_ref().map(|(_, scaling)| scaling)).all(|scaling| match scaling {
            RopeScaling::Dynamic { original, .. } | RopeScaling::Long { original, .. } => {
                length.saturating_add(self.virtual_tokens()) as f64 <= *original
            }
            _ => true,
        })
    }

    /// Fails for a row that would be computed wrongly or fail inside libtorch: empty, with ids outside the
    /// vocabulary, or with too long a sequence. Segment s continues `past[s]` tokens, virtual ones included.
    pub(super) fn check(&self, tokens: &Tokens, past: &[i64]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::bug("a packed row without tokens"));
        }
        let vocabulary = self.config.vocab_size;
        if i64::from(tokens.largest_id) >= vocabulary {
            return Err(Error::user(format!(
                "token id {} is out of range: {} has a vocabulary of {vocabulary}",
                tokens.largest_id,
                self.folder.display()
            ))
            .hint("the tokenizer belongs to another model, or has tokens that were not added to this model"));
        }
        if let Some(known) = self.decoder.known_tokens().filter(|known| i64::from(tokens.largest_id) >= *known) {
            return Err(Error::user(format!(
                "token id {} is out of range: layers of {} have vectors for {known} tokens (`vocab_size_per_layer_input`)",
                tokens.largest_id,
                self.folder.display()
            ))
            .hint("tokens beyond these stand for images and sounds; if this one is text, the tokenizer belongs to another model"));
        }
        let added = |n: i64, past: i64| if past == 0 && n > 0 { self.virtual_tokens() } else { 0 };
        let positions = tokens.segments.lengths.iter().zip(past.iter().chain(std::iter::repeat(&0)));
        let longest = positions.map(|(n, p)| n + p + added(*n, *p)).max();
        let included = if self.virtual_tokens() > 0 { ", virtual ones included" } else { "" };
        match (longest, self.decoder.longest()) {
            (Some(n), Some(limit)) if n > limit => Err(Error::user(format!(
                "a sequence of {n} tokens{included}: {} has positions for {limit}",
                self.folder.display()
            ))
            .hint(format!(
                "keep sequences within {} tokens: batch.max_len when training, fewer new tokens when generating",
                limit - self.virtual_tokens()
            ))),
            _ => Ok(()),
        }
    }
}
