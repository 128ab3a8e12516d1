//! The model's input: one packed row of tokens.
//!
//! Sequences are concatenated instead of padded; each is one segment of the row. Positions restart at each segment, and
//! attention never crosses a segment's boundary.

use crate::native::{upload, upload_list};
use std::cell::OnceCell;
use tch::{Device, Kind, Tensor};

/// A packed row: token ids, positions and segments.
pub struct Tokens {
    /// (T) token ids.
    pub ids: Tensor,
    /// (T) positions inside each segment.
    pub positions: Tensor,
    /// The sequences of the row.
    pub segments: Segments,
    /// Largest token id, stored here so that a check needs no copy from the GPU.
    pub largest_id: u32,
}

impl Tokens {
    /// Packs sequences into one row, one segment each.
    pub fn pack<S: AsRef<[u32]>>(sequences: &[S], device: Device) -> Self {
        let starts = vec![0; sequences.len()];
        Self::pack_after(sequences, &starts, device)
    }

    /// Packs sequences into one row; sequence s continues one that already has `past[s]` tokens, from which its
    /// positions count.
    pub fn pack_after<S: AsRef<[u32]>>(sequences: &[S], past: &[i64], device: Device) -> Self {
        Self::pack_numbers(sequences, past, Vec::new(), device).0
    }

    /// Packs sequences into one row, one segment each, and uploads `more` numbers about the row in the same transfer.
    /// Returns both.
    pub fn pack_with<S: AsRef<[u32]>, const N: usize>(
        sequences: &[S],
        more: [Tensor; N],
        device: Device,
    ) -> (Self, [Tensor; N]) {
        let starts = vec![0; sequences.len()];
        let (tokens, more) = Self::pack_numbers(sequences, &starts, more.into(), device);
        (tokens, more.try_into().expect("as many as were given"))
    }

    fn pack_numbers<S: AsRef<[u32]>>(
        sequences: &[S],
        past: &[i64],
        more: Vec<Tensor>,
        device: Device,
    ) -> (Self, Vec<Tensor>) {
        let lengths: Vec<i64> = sequences.iter().map(|s| s.as_ref().len() as i64).collect();
        let ids: Vec<i64> = sequences.iter().flat_map(|s| s.as_ref().iter().map(|&id| id as i64)).collect();
        let positions: Vec<i64> = lengths.iter().zip(past).flat_map(|(n, p)| *p..p + n).collect();
        let own = [Tensor::from_slice(&ids), Tensor::from_slice(&positions), bounds(&lengths)];
        let mut numbers = upload_list(own.into_iter().chain(more).collect(), device).into_iter();
        let [ids, positions, bounds] = std::array::from_fn(|_| numbers.next().expect("as many as were given"));
        let tokens = Self {
            largest_id: sequences.iter().flat_map(|s| s.as_ref().iter().copied()).max().unwrap_or(0),
            ids,
            positions,
            segments: Segments::with_bounds(lengths, bounds),
        };
        (tokens, numbers.collect())
    }

    /// Returns one token for each of several sequences that go on: ids and positions (S) on one device, and the
    /// boundaries (S + 1) int32 of segments of one token. No number is read, so a device is not waited for.
    pub fn one_each(ids: Tensor, positions: Tensor, bounds: Tensor) -> Self {
        let lengths = vec![1; ids.size()[0] as usize];
        let segments = Segments { lengths, bounds, longest: 1, groups: OnceCell::new() };
        Self { ids, positions, segments, largest_id: 0 }
    }

    /// Returns the same tokens at other positions (T).
    pub(super) fn at_positions(&self, positions: Tensor) -> Self {
        let segments = Segments::with_bounds(self.segments.lengths.clone(), self.segments.bounds.shallow_clone());
        Self { ids: self.ids.shallow_clone(), positions, segments, largest_id: self.largest_id }
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.ids.size()[0] as usize
    }

    /// Returns true for a row without tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The segments of a packed row, and the groups in which attention computes them.
pub struct Segments {
    /// The number of tokens of each segment.
    pub lengths: Vec<i64>,
    /// (S + 1) int32 boundaries, in the format of packed attention kernels.
    pub bounds: Tensor,
    /// The number of tokens of the longest segment.
    pub longest: i64,
    /// The blocks that attention computes, once they were asked for.
    groups: OnceCell<Vec<SegmentGroup>>,
}

/// Segments of similar length that attention computes as one padded block. Causal attention never reads later
/// positions, so padding at the end of a segment changes no result; results at padded positions are dropped.
pub struct SegmentGroup {
    /// The number of segments.
    pub count: i64,
    /// The length that all are padded to.
    pub longest: i64,
    /// (count * longest) int64 on the CPU: the row of each position of the block, -1 for padding. `None` if the block is
    /// the packed row itself, without padding.
    pub rows: Option<Tensor>,
}

impl Segments {
    /// Creates segments of these lengths, which follow each other in a row.
    pub fn new(lengths: Vec<i64>, device: Device) -> Self {
        let [bounds] = upload([bounds(&lengths)], device);
        Self::with_bounds(lengths, bounds)
    }

    /// Creates segments of these lengths; `bounds` (S + 1) are already on the device.
    fn with_bounds(lengths: Vec<i64>, bounds: Tensor) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self { bounds, longest, groups: OnceCell::new(), lengths }
    }

    /// Returns the blocks that attention on the CPU computes; CUDA's kernels read `bounds` instead. Their tables are made
    /// when they are first asked for.
    pub fn groups(&self) -> &[SegmentGroup] {
        self.groups.get_or_init(|| group_segments(&self.lengths, &starts(&self.lengths)))
    }

    /// Returns the number of tokens of all segments.
    pub fn total(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// Returns the number of segments.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the row of each segment's last token: (S).
    pub fn last_rows(&self) -> Tensor {
        self.bounds.slice(0, 1, None, 1).to_kind(Kind::Int64) - 1
    }
}

/// Returns the first row of each segment, and the row after the last one: (S + 1).
fn starts(lengths: &[i64]) -> Vec<i64> {
    let mut starts = vec![0i64];
    for n in lengths {
        starts.push(starts[starts.len() - 1] + n);
    }
    starts
}

/// Returns the same in the format of packed attention kernels: (S + 1) int32.
fn bounds(lengths: &[i64]) -> Tensor {
    Tensor::from_slice(&starts(lengths).iter().map(|&s| s as i32).collect::<Vec<_>>())
}

/// Largest number of attention scores per head in one block; limits the memory of the backward.
const MAX_BLOCK_SCORES: i64 = 1 << 20;

fn group_segments(lengths: &[i64], starts: &[i64]) -> Vec<SegmentGroup> {
    if lengths.iter().all(|n| *n == lengths[0] && *n > 0)
        && !lengths.is_empty()
        && lengths.len() as i64 * lengths[0].pow(2) <= MAX_BLOCK_SCORES
    {
        return vec![SegmentGroup { count: lengths.len() as i64, longest: lengths[0], rows: None }];
    }
    // In decoding, a cache slot may get no token in a pass: its segment is empty and is left out.
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut groups = Vec::new();
    let mut at = 0;
    while at < order.len() {
        let longest = lengths[order[at]];
        // Up to a quarter of padding costs less than launching the kernels for another small group.
        let alike = |i: &&usize| lengths[**i] >= longest * 3 / 4 || longest - lengths[**i] <= 16;
        let most = (MAX_BLOCK_SCORES / longest.pow(2)).max(1) as usize;
        let members: Vec<usize> = order[at..].iter().take(most).take_while(alike).copied().collect();
        at += members.len();
        let row = |i: usize, t: i64| if t < lengths[i] { starts[i] + t } else { -1 };
        let rows: Vec<i64> = members.iter().flat_map(|&i| (0..longest).map(move |t| row(i, t))).collect();
        groups.push(SegmentGroup { count: members.len() as i64, longest, rows: Some(Tensor::from_slice(&rows)) });
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_attended_once() {
        let lengths = vec![3, 40, 1, 38, 100, 7];
        let segments = Segments::new(lengths.clone(), Device::Cpu);
        let mut seen: Vec<i64> = Vec::new();
        for g in segments.groups() {
            let rows = Vec::<i64>::try_from(g.rows.as_ref().unwrap()).unwrap();
            assert_eq!(rows.len() as i64, g.count * g.longest);
            seen.extend(rows.into_iter().filter(|row| *row >= 0));
        }
        seen.sort();
        assert_eq!(seen, (0..lengths.iter().sum::<i64>()).collect::<Vec<_>>());
        assert_eq!(Vec::<i64>::try_from(segments.last_rows()).unwrap(), [2, 42, 43, 81, 181, 188]);
    }
}
