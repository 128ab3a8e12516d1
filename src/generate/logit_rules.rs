//! Changes logits by rules before a token is chosen: first penalties, then forbidden tokens, then forced ones. The
//! changes are collected over all rows and applied in a few operations on the logits' device.

use super::settings::GenerationSettings;
use crate::native::upload_slice;
use tch::Tensor;

/// Collected changes to logits (B, V), each with its row and token id.
#[derive(Default)]
pub(super) struct LogitEdits {
    /// (row, token) whose logit is divided or multiplied by the repetition penalty.
    scaled: Vec<(usize, u32)>,
    /// (row, token) from whose logit the same entry of `less` is subtracted.
    lowered: Vec<(usize, u32)>,
    reductions: Vec<f32>,
    /// (row, token) that is forbidden.
    banned: Vec<(usize, u32)>,
    /// The only token that is allowed in a row.
    forced: Vec<(usize, u32)>,
}

impl LogitEdits {
    /// Applies the repetition penalty to a token.
    pub fn scale(&mut self, row: usize, id: u32) {
        self.scaled.push((row, id));
    }

    /// Subtracts `by` from the logit of a token.
    pub fn lower(&mut self, row: usize, id: u32, by: f32) {
        self.lowered.push((row, id));
        self.reductions.push(by);
    }

    /// Forbids a token.
    pub fn ban(&mut self, row: usize, id: u32) {
        self.banned.push((row, id));
    }

    /// Forbids every other token of the row.
    pub fn force(&mut self, row: usize, id: u32) {
        self.forced.push((row, id));
    }

    /// Applies the changes to `logits` (B, V) in place. Ids outside the vocabulary are ignored. The host does not wait
    /// for the device.
    pub fn apply(self, logits: &Tensor, settings: &GenerationSettings) {
        let (width, device) = (logits.size()[1], logits.device());
        let inside = |id: &u32| i64::from(*id) < width;
        let place = |(row, id): &(usize, u32)| *row as i64 * width + i64::from(*id);
        let places = |at: &[(usize, u32)]| at.iter().filter(|(_, id)| inside(id)).map(place).collect::<Vec<i64>>();
        let forced_rows: Vec<i64> = self.forced.iter().map(|(row, _)| *row as i64).collect();
        let lists =
            [places(&self.scaled), places(&self.lowered), places(&self.banned), forced_rows, places(&self.forced)];
        if lists.iter().all(Vec::is_empty) {
            return;
        }
        // One upload for all lists.
        let all = upload_slice(&lists.concat(), device);
        let mut from = 0;
        let [scaled, lowered, banned, forced_rows, forced] = lists.map(|list| {
            from += list.len() as i64;
            (!list.is_empty()).then(|| all.narrow(0, from - list.len() as i64, list.len() as i64))
        });
        let mut flat = logits.view([-1]);
        if let Some(at) = scaled {
            let old = flat.index_select(0, &at);
            let (less, more) = (&old / settings.repetition_penalty, &old * settings.repetition_penalty);
            let _ = flat.index_copy_(0, &at, &more.where_self(&old.lt(0.0), &less));
        }
        if let Some(at) = lowered {
            let less: Vec<f32> =
                self.lowered.iter().zip(&self.reductions).filter(|((_, id), _)| inside(id)).map(|(_, x)| -x).collect();
            let _ = flat.index_add_(0, &at, &upload_slice(&less, device));
        }
        if let Some(at) = banned {
            let _ = flat.index_fill_(0, &at, f64::NEG_INFINITY);
        }
        if let Some(rows) = forced_rows {
            let _ = logits.shallow_clone().index_fill_(0, &rows, f64::NEG_INFINITY);
        }
        if let Some(at) = forced {
            let _ = flat.index_fill_(0, &at, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn penalties_come_before_bans_and_what_is_forced_comes_alone() {
        let logits = Tensor::from_slice(&[1.0f32, -1.0, 2.0, 4.0, 1.0, -1.0, 2.0, 4.0]).view([2, 4]);
        let settings = GenerationSettings { repetition_penalty: 2.0, ..GenerationSettings::greedy(1, &[]) };
        let mut edits = LogitEdits::default();
        edits.scale(0, 0);
        edits.scale(0, 1);
        edits.lower(0, 1, 0.5);
        edits.scale(0, 3);
        edits.ban(0, 3);
        edits.ban(0, 9); // no such token: nothing to ban, and not the next row's
        edits.ban(1, 2);
        edits.force(1, 2);
        edits.apply(&logits, &settings);
        let inf = f32::NEG_INFINITY;
        let expected = Tensor::from_slice(&[0.5f32, -2.5, 2.0, inf, inf, inf, 0.0, inf]).view([2, 4]);
        assert_eq!(logits, expected);
        assert_eq!((logits.kind(), logits.device()), (Kind::Float, Device::Cpu));
    }
}
