//! Which tokens of each sequence the layers with one window keep, and where a pass puts new ones.
//!
//! A layer with a window of w needs the last w - 1 tokens for the next one. Its table keeps those and some more: old tokens are
//! removed many at a time, by moving those that stay to the front of the slot, so that the kept tokens always lie in order and
//! kernels read them like those of layers without a window. What is kept beyond the window also allows a sequence to be shortened
//! a little, as a conversation is whose last answer is rendered differently.

use super::device_index::DeviceIndex;
use tch::Tensor;

/// The tokens that the layers with one window (or with none) keep.
pub(super) struct KeptTokens {
    pub window: Option<i64>,
    /// Number of tokens that each slot has room for in the tables of these layers.
    pub capacity: i64,
    /// For each sequence the position of the first token that is kept: 0 without a window.
    pub first: Vec<i64>,
    /// What a decoding step on a device reads; `None` before the first step, and after any other change of the sequences.
    pub index: Option<DeviceIndex>,
    /// Where the present pass puts its tokens; `None` until a layer writes.
    pub placement: Option<Placement>,
}

/// Where a pass puts the new tokens of its sequences in the tables of layers with one window.
pub(super) struct Placement {
    /// Old tokens that move to the front of their slots before new ones are written.
    pub moves: Vec<Move>,
    /// (n) the rows of the pass that are written; `None`: all of them.
    pub kept: Option<Tensor>,
    /// (n * K) the row of each head of each of them, in a table flattened to (slot_capacity * K * capacity, E).
    pub rows: Tensor,
    /// Sequences that keep fewer tokens after the pass, with the position of their first one.
    pub first: Vec<(usize, i64)>,
}

/// Tokens that move to the front of a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Move {
    pub slot: usize,
    /// The first token that moves, counted from the slot's first.
    pub from: i64,
    pub count: i64,
}

impl Move {
    /// Moves the tokens in a table (slots, K, capacity, E).
    pub fn apply(self, table: &Tensor) {
        let slot = table.get(self.slot as i64);
        let source = slot.narrow(1, self.from, self.count);
        // The two places may overlap.
        let source = if self.from < self.count { source.copy() } else { source };
        slot.narrow(1, 0, self.count).copy_(&source);
    }
}

/// What a sequence keeps after a pass that has no room for all its tokens: so many of the old ones and of the new ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shortened {
    pub old: i64,
    pub new: i64,
}

/// Returns the number of tokens that a table keeps at most beyond a window. Each removal makes room for half as many new tokens
/// and moves all that stay: 9 tokens moved for each new one with a window of 512, 17 with one of 4096. Attention reads the whole window
/// for each new token, so moving adds little.
fn slack(window: i64) -> i64 {
    (window / 4).clamp(2, 512)
}

impl KeptTokens {
    pub fn new(window: Option<i64>, sequences: usize) -> Self {
        Self { window, capacity: 0, first: vec![0; sequences], index: None, placement: None }
    }

    /// Returns the number of tokens that a layer with this window keeps at most of a sequence of `length` tokens.
    pub fn most(window: Option<i64>, length: i64) -> i64 {
        window.map_or(length, |window| length.min(window + slack(window)))
    }

    /// Returns the number of tokens that a sequence of this length has in the tables.
    pub fn stored(&self, sequence: usize, length: i64) -> i64 {
        length - self.first[sequence]
    }

    /// Returns what is kept of `stored` tokens and `added` more, if the tables have no room for all of them.
    pub fn shortened(&self, stored: i64, added: i64) -> Option<Shortened> {
        let window = self.window.filter(|_| stored + added > self.capacity)?;
        let kept = window - 1 + slack(window) / 2;
        let new = added.min(kept);
        Some(Shortened { old: (kept - new).min(stored), new })
    }

    /// Returns the number of old tokens that the first of new tokens sees, of `stored` ones.
    pub fn seen(&self, stored: i64) -> i64 {
        self.window.map_or(stored, |window| stored.min(window - 1))
    }

    /// Returns true if a sequence may be shortened to `length` tokens: what its next token sees is still kept.
    pub fn reaches(&self, sequence: usize, length: i64) -> bool {
        let first = self.first[sequence];
        first == 0 || self.window.is_some_and(|window| length - first >= window - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is added, a sequence keeps what its next token sees, fits into its slot, and leaves room for the next token.
    #[test]
    fn a_sequence_keeps_what_its_next_token_sees() {
        for window in [1, 2, 3, 7, 64, 4096] {
            let capacity = KeptTokens::most(Some(window), i64::MAX);
            let kept = KeptTokens { capacity, ..KeptTokens::new(Some(window), 1) };
            let mut shortened = 0;
            for stored in [0, 1, window / 2, window - 1, window, capacity - 1, capacity] {
                for added in [1, 2, window, capacity, 3 * capacity] {
                    let Some(after) = kept.shortened(stored, added) else { continue };
                    shortened += 1;
                    let all = after.old + after.new;
                    assert!(after.old <= stored && after.new <= added && after.old >= 0, "{window}: {after:?}");
                    assert!(all < capacity && all >= window - 1, "{window}: {after:?} of {stored} + {added}");
                    // Old tokens are only kept if all new ones are: what is kept is without gaps.
                    assert!(after.old == 0 || after.new == added, "{window}: {after:?}");
                }
            }
            assert!(shortened > 5, "{window}: {shortened}");
        }
        assert!(KeptTokens::new(None, 1).shortened(5, 5).is_none());
    }
}
