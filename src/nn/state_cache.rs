//! The states of recurrent layers in decoding: one for each slot of a cache, however long its sequence is.

use crate::native::upload_slice;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The states of every recurrent layer, (slots, states * D) float32 each; allocated when the layer first asks. Slots are
/// those of the cache that owns it.
pub(super) struct StateCache {
    layers: Vec<Option<Tensor>>,
    device: Device,
}

impl StateCache {
    /// Returns states for `layers` layers, none of which has asked yet.
    pub fn new(layers: usize, device: Device) -> Self {
        Self { layers: (0..layers).map(|_| None).collect(), device }
    }

    /// Returns the states of `slots` in a layer: (S, width). `capacity` is the number of slots of the cache.
    pub fn read(&mut self, layer: usize, slots: &[usize], capacity: i64, width: i64) -> Tensor {
        let device = self.device;
        let all = self.layers[layer].get_or_insert_with(|| Tensor::zeros([capacity, width], (Kind::Float, device)));
        match run(slots) {
            Some(slots) => all.narrow(0, slots.start as i64, slots.len() as i64),
            None => all.index_select(0, &numbers(slots, device)),
        }
    }

    /// Replaces the states of `slots` in a layer by `states` (S, width).
    pub fn write(&mut self, layer: usize, slots: &[usize], states: &Tensor) {
        let all = self.layers[layer].as_ref().expect("read before written");
        match run(slots) {
            Some(slots) => all.narrow(0, slots.start as i64, slots.len() as i64).copy_(states),
            None => drop(all.shallow_clone().index_copy_(0, &numbers(slots, self.device), states)),
        }
    }

    /// Sets the states of a slot to those before the first token.
    pub fn clear(&mut self, slot: usize) {
        let all = self.layers.iter().flatten().filter(|all| all.size()[0] > slot as i64);
        all.for_each(|all| drop(all.get(slot as i64).zero_()));
    }

    /// Copies the states in slot `from` over those in the slots `to`.
    pub fn copy(&mut self, from: usize, to: Range<usize>) {
        for all in self.layers.iter().flatten() {
            all.narrow(0, to.start as i64, to.len() as i64).copy_(&all.get(from as i64));
        }
    }

    /// Makes room for `slots` slots; further ones are dropped.
    pub fn resize(&mut self, slots: i64) {
        for all in self.layers.iter_mut().flatten() {
            let kept = all.size()[0].min(slots);
            *all = all.narrow(0, 0, kept).constant_pad_nd([0, 0, 0, slots - kept]);
        }
    }

    /// Reorders the slots: slot i gets the states of slot `order[i]`.
    pub fn select(&mut self, order: &Tensor) {
        self.layers.iter_mut().flatten().for_each(|all| *all = all.index_select(0, order));
    }
}

/// Returns the range of slots that follow each other.
fn run(slots: &[usize]) -> Option<Range<usize>> {
    let first = *slots.first()?;
    slots.iter().enumerate().all(|(i, slot)| *slot == first + i).then(|| first..first + slots.len())
}

fn numbers(slots: &[usize], device: Device) -> Tensor {
    upload_slice(&slots.iter().map(|slot| *slot as i64).collect::<Vec<_>>(), device)
}
