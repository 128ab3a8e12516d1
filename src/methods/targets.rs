//! Which tokens of a packed row a loss predicts: the positions of the trunk's output, and the tokens expected there.

use crate::models::{padded_length, padded_segments, padded_targets};
use crate::native::upload;
use crate::nn::Tokens;
use tch::{Device, Tensor};

/// Tokens of S packed sequences that a loss predicts, N in all.
pub struct TargetTokens {
    /// (N) rows of the trunk's output that predict these tokens, sequence after sequence.
    pub at: Tensor,
    /// (N) the tokens.
    pub targets: Tensor,
    /// The numbers of `at`, on the host.
    pub rows: Vec<i64>,
    /// Number of these tokens in each sequence.
    pub counts: Vec<i64>,
    /// (S) the same, int64 on the device.
    pub counts_on_device: Tensor,
}

impl TargetTokens {
    /// Selects the tokens for which `wanted(sequence index, token index)` is true, of sequences packed one after the
    /// other into one row. The first token of a sequence is never selected: nothing precedes it that could predict it.
    pub fn select<'a>(
        sequences: impl IntoIterator<Item = &'a [u32]>,
        wanted: impl Fn(usize, usize) -> bool,
        device: Device,
    ) -> Self {
        let chosen = ChosenTokens::of(sequences, wanted);
        let on_device = upload(chosen.numbers(), device);
        chosen.with(on_device)
    }

    /// Packs sequences into one row and selects tokens of it as `select` does. Everything goes to the device in one
    /// transfer.
    pub fn pack(sequences: &[&[u32]], wanted: impl Fn(usize, usize) -> bool, device: Device) -> (Tokens, Self) {
        let chosen = ChosenTokens::of(sequences.iter().copied(), wanted);
        let (tokens, on_device) = Tokens::pack_with(sequences, chosen.numbers(), device);
        (tokens, chosen.with(on_device))
    }
}

/// A packed row and the tokens of it that a loss predicts, both padded to one of few shapes, so that passes over such rows can be recorded.
/// Padding changes no result.
pub struct PaddedRow {
    /// The row. Its last segments are one with padding and empty ones.
    pub tokens: Tokens,
    /// (N') rows of the trunk's output that predict a token; 0 for padding.
    pub at: Tensor,
    /// (N') the tokens; 0 for padding.
    pub targets: Tensor,
    /// (N') float32: 1, and 0 for padding.
    pub weights: Tensor,
    /// The first N numbers of `at`, on the host.
    pub rows: Vec<i64>,
    /// Number of tokens without padding.
    pub length: usize,
}

impl PaddedRow {
    /// Packs sequences into one row, padded, and selects tokens of it as [`TargetTokens::select`] does. Everything goes to the device
    /// in one transfer.
    pub fn pack(sequences: &[&[u32]], wanted: impl Fn(usize, usize) -> bool, device: Device) -> Self {
        let length = sequences.iter().map(|ids| ids.len()).sum();
        let whole = padded_length(length);
        let ChosenTokens { at, targets, .. } = ChosenTokens::of(sequences.iter().copied(), wanted);
        let count = padded_targets(at.len(), length);
        let filled = |numbers: &[i64]| Tensor::from_slice(&[numbers, &vec![0; count - numbers.len()]].concat());
        let weights: Vec<f32> = (0..count).map(|i| if i < at.len() { 1.0 } else { 0.0 }).collect();
        let padding = vec![0; whole - length];
        let mut all = [sequences, &[&padding[..]]].concat();
        all.resize(padded_segments(sequences.len()), &[]);
        let numbers = [filled(&at), filled(&targets), Tensor::from_slice(&weights)];
        let (mut tokens, [on_device, targets, weights]) = Tokens::pack_with(&all, numbers, device);
        tokens.segments.longest = (tokens.segments.longest as usize).next_power_of_two() as i64;
        Self { tokens, at: on_device, targets, weights, rows: at, length }
    }
}

/// Selected tokens on the host.
struct ChosenTokens {
    at: Vec<i64>,
    targets: Vec<i64>,
    counts: Vec<i64>,
}

impl ChosenTokens {
    fn of<'a>(sequences: impl IntoIterator<Item = &'a [u32]>, wanted: impl Fn(usize, usize) -> bool) -> Self {
        let (mut at, mut targets, mut counts, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0i64);
        for (i, ids) in sequences.into_iter().enumerate() {
            let before = at.len();
            for t in (1..ids.len()).filter(|&t| wanted(i, t)) {
                at.push(start + t as i64 - 1);
                targets.push(i64::from(ids[t]));
            }
            counts.push((at.len() - before) as i64);
            start += ids.len() as i64;
        }
        Self { at, targets, counts }
    }

    fn numbers(&self) -> [Tensor; 3] {
        [&self.at, &self.targets, &self.counts].map(|numbers| Tensor::from_slice(numbers))
    }

    fn with(self, [at, targets, counts_on_device]: [Tensor; 3]) -> TargetTokens {
        TargetTokens { at, targets, counts_on_device, rows: self.at, counts: self.counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_precede_their_tokens_and_no_sequence_predicts_its_first() {
        let found =
            TargetTokens::select([&[5u32, 6, 7][..], &[8], &[], &[9, 10]], |i, t| i != 0 || t == 2, Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(found.at).unwrap(), [1, 4]);
        assert_eq!(Vec::<i64>::try_from(found.targets).unwrap(), [7, 10]);
        assert_eq!(found.counts, [1, 0, 0, 1]);
    }
}
