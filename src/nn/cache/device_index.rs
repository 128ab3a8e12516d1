//! What a decoding step on a device reads about the sequences of a cache.

use super::CacheLayout;
use crate::native::upload_slice;
use tch::Tensor;

/// Where the next token of every sequence goes and which keys it attends to, in the tables of the layers with one window. It
/// stays on the device from step to step: a step increments it there. In the tables of the kernels, every head of every
/// sequence is a sequence of its own, number s * K + h, with G queries.
pub(super) struct DeviceIndex {
    /// (S + S * K) int64: the positions of the next tokens, then the table rows that their heads are written to. One
    /// tensor, so that one operation increments all of them.
    pub next: Tensor,
    /// (S * K) int32: number of stored keys of each head, that of the next token included.
    held: Tensor,
    /// (S * K + 1) int32: the table row of each head's first key, and a last entry that is not read.
    starts: Tensor,
    /// (S * K + 1) int32: the first query of each head.
    pub query_bounds: Tensor,
    /// (S + 1) int32: boundaries of segments of one token.
    pub segment_bounds: Tensor,
}

impl DeviceIndex {
    /// Returns the index of sequences of these `lengths`, of which tables with room for `capacity` tokens a slot have
    /// `stored` tokens.
    pub fn new(lengths: &[i64], stored: &[i64], slots: &[usize], capacity: i64, layout: &CacheLayout) -> Self {
        let (k, g, n) = (layout.kv_heads, layout.heads / layout.kv_heads, lengths.len() as i64);
        let heads =
            || slots.iter().zip(stored).flat_map(|(s, n)| (0..k).map(move |h| ((*s as i64 * k + h) * capacity, *n)));
        let next: Vec<i64> = lengths.iter().copied().chain(heads().map(|(start, stored)| start + stored)).collect();
        let narrow: Vec<i32> = heads()
            .map(|(_, stored)| stored + 1)
            .chain(heads().map(|(start, _)| start).chain([0]))
            .chain((0..=n * k).map(|i| i * g))
            .chain(0..=n)
            .map(|x| i32::try_from(x).expect("a table has fewer than 2^31 rows"))
            .collect();
        let narrow = upload_slice(&narrow, layout.device);
        let mut from = 0;
        let mut part = |length: i64| {
            from += length;
            narrow.narrow(0, from - length, length)
        };
        Self {
            next: upload_slice(&next, layout.device),
            held: part(n * k),
            starts: part(n * k + 1),
            query_bounds: part(n * k + 1),
            segment_bounds: part(n + 1),
        }
    }

    /// Returns `starts` and `held` of the keys that the next tokens see through a window. Computed on the device, so
    /// that nothing is waited for.
    pub fn seen(&self, window: Option<i64>) -> [Tensor; 2] {
        let Some(window) = window else { return [self.starts.shallow_clone(), self.held.shallow_clone()] };
        let skipped = (&self.held - window).clamp_min(0).constant_pad_nd([0, 1]);
        [&self.starts + skipped, self.held.clamp_max(window)]
    }

    /// Returns all its tensors.
    pub fn tensors(&self) -> [&Tensor; 5] {
        [&self.next, &self.held, &self.starts, &self.query_bounds, &self.segment_bounds]
    }

    /// Moves on by one token of every sequence.
    pub fn advance(&mut self) {
        self.next += 1;
        self.held += 1;
    }
}
