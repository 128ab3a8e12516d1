//! Keys and values of the tokens already seen, one slot a sequence.

use tch::{Device, Kind, Tensor};

/// Key/value cache for batched decoding: each layer holds (slots, capacity, K, E) keys and values.
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Tokens held per slot.
    pub lengths: Vec<i64>,
    capacity: i64,
}

/// Capacity grows in steps of so many tokens.
const STEP: i64 = 128;

impl Cache {
    /// An empty cache for `slots` sequences.
    pub fn new(depth: usize, slots: usize) -> Self {
        Self { layers: (0..depth).map(|_| None).collect(), lengths: vec![0; slots], capacity: 0 }
    }

    /// Makes room for each slot's `added` tokens; call before the trunk runs.
    pub fn reserve(&mut self, added: &[i64]) {
        let needed = self.lengths.iter().zip(added).map(|(l, a)| l + a).max().unwrap_or(0);
        if needed > self.capacity {
            let grown = (needed.max(self.capacity * 5 / 4) + STEP - 1) / STEP * STEP;
            for (k, v) in self.layers.iter_mut().flatten() {
                for t in [k, v] {
                    let size = t.size();
                    *t = Tensor::cat(&[&*t, &t.new_zeros([size[0], grown - size[1], size[2], size[3]], (t.kind(), t.device()))], 1);
                }
            }
            self.capacity = grown;
        }
    }

    /// Writes keys and values (T, K, E) of one layer: `slots` and `at` (T) say where each token goes.
    pub(super) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, places: &Tensor) {
        let size = k.size();
        let shape = [self.lengths.len() as i64, self.capacity, size[1], size[2]];
        let (keys, values) =
            self.layers[layer].get_or_insert_with(|| (zeros(&shape, k.kind(), k.device()), zeros(&shape, k.kind(), k.device())));
        for (table, new) in [(keys, k), (values, v)] {
            let _ = table.view([shape[0] * shape[1], size[1], size[2]]).index_copy_(0, places, new);
        }
    }

    /// Keys and values of one layer, (slots, capacity, K, E), `longest` of them along the second dimension.
    pub(super) fn read(&self, layer: usize, longest: i64) -> (Tensor, Tensor) {
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        (k.narrow(1, 0, longest), v.narrow(1, 0, longest))
    }

    /// Row in the flattened (slots * capacity) table for each new token of each slot, in packed order.
    pub(super) fn places(&self, added: &[i64], device: Device) -> Tensor {
        let rows: Vec<i64> = (0..self.lengths.len())
            .flat_map(|s| (0..added[s]).map(move |t| (s, t)))
            .map(|(s, t)| s as i64 * self.capacity + self.lengths[s] + t)
            .collect();
        Tensor::from_slice(&rows).to_device(device)
    }

    /// Counts the tokens that the pass just added.
    pub fn advance(&mut self, added: &[i64]) {
        for (l, a) in self.lengths.iter_mut().zip(added) {
            *l += a;
        }
    }

    /// Keeps only the given slots, in the given order.
    pub fn keep(&mut self, slots: &[usize]) {
        let index: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
        for (k, v) in self.layers.iter_mut().flatten() {
            let index = Tensor::from_slice(&index).to_device(k.device());
            *k = k.index_select(0, &index);
            *v = v.index_select(0, &index);
        }
        self.lengths = slots.iter().map(|&s| self.lengths[s]).collect();
    }
}

fn zeros(shape: &[i64; 4], kind: Kind, device: Device) -> Tensor {
    Tensor::zeros(shape.as_slice(), (kind, device))
}
