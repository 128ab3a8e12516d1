//! Key/value cache of decoding: one slot for each sequence.
//!
//! Copying the cache at every decoding step would cost more than the step. So each layer has one table of keys and
//! one of values, (slot capacity, K, capacity, E), in which the keys of a head are contiguous and attention reads
//! them in place. A table doubles its number of slots or its capacity when it is full; sequences are added and
//! removed in place. The slots in use are always the first ones of the table.

use crate::native;
use tch::{Device, Tensor};

/// Key/value cache for batched decoding.
pub struct KvCache {
    /// Keys and values, (slot_capacity, K, capacity, E) each; allocated when the layer first writes.
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Number of tokens in each slot in use.
    pub lengths: Vec<i64>,
    /// Number of slots that the tables have room for.
    slot_capacity: i64,
    /// Number of tokens that each slot has room for.
    capacity: i64,
}

/// The capacity of a slot is a multiple of this number of tokens.
const CAPACITY_STEP: i64 = 128;

impl KvCache {
    /// Returns an empty cache for a model with `depth` layers and `slots` sequences.
    pub fn new(depth: usize, slots: usize) -> Self {
        let layers = (0..depth).map(|_| None).collect();
        Self { layers, lengths: vec![0; slots], slot_capacity: slots as i64, capacity: 0 }
    }

    /// Makes room for `added[s]` more tokens in each slot s. Must be called before the layers run.
    pub fn reserve(&mut self, added: &[i64]) {
        assert_eq!(added.len(), self.lengths.len(), "one segment a slot");
        let needed = self.lengths.iter().zip(added).map(|(l, a)| l + a).max().unwrap_or(0);
        if needed > self.capacity {
            self.capacity = (needed.max(self.capacity * 2) + CAPACITY_STEP - 1) / CAPACITY_STEP * CAPACITY_STEP;
            self.grow(2, self.capacity);
        }
    }

    /// Enlarges dimension `dim` of every table to `size`; new entries are zero.
    fn grow(&mut self, dim: i64, size: i64) {
        for t in self.tables() {
            let mut shape = t.size();
            shape[dim as usize] = size;
            let grown = Tensor::zeros(shape, (t.kind(), t.device()));
            grown.narrow(dim, 0, t.size()[dim as usize]).copy_(t);
            *t = grown;
        }
    }

    /// Adds `slots` empty slots after those in use.
    pub fn add_slots(&mut self, slots: usize) {
        self.lengths.resize(self.lengths.len() + slots, 0);
        let live = self.lengths.len() as i64;
        if live > self.slot_capacity {
            self.slot_capacity = live.max(self.slot_capacity * 2);
            self.grow(0, self.slot_capacity);
        }
    }

    /// Adds a slot that is a copy of slot `from`.
    pub fn fork_slot(&mut self, from: usize) {
        self.add_slots(1);
        let to = self.lengths.len() - 1;
        self.lengths[to] = self.lengths[from];
        self.copy(from, to, self.lengths[from]);
    }

    /// Copies the first `held` tokens of slot `from` over those of slot `to`, in every layer.
    fn copy(&mut self, from: usize, to: usize, held: i64) {
        for t in self.tables() {
            t.get(to as i64).narrow(1, 0, held).copy_(&t.get(from as i64).narrow(1, 0, held));
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flatten().flat_map(|(k, v)| [k, v])
    }

    /// Returns one layer's tables; allocates them for keys of the dtype and sizes of `k` (T, K, E) if there are none
    /// yet.
    fn layer(&mut self, layer: usize, k: &Tensor) -> &(Tensor, Tensor) {
        let shape = [self.slot_capacity, k.size()[1], self.capacity, k.size()[2]];
        let table = || Tensor::zeros(shape, (k.kind(), k.device()));
        self.layers[layer].get_or_insert_with(|| (table(), table()))
    }

    /// Writes keys and values (T, K, E) of one layer to the table rows `places`, as [`KvCache::table_rows`] gives them.
    pub(super) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, places: &Tensor) {
        let size = k.size()[2];
        let (keys, values) = self.layer(layer, k);
        for (table, new) in [(keys, k), (values, v)] {
            let _ = table.view([-1, size]).index_copy_(0, places, &new.reshape([-1, size]));
        }
    }

    /// Writes one new token for each slot and attends from it, in one native call: q (S, H, E); k and v (S, K, E) ->
    /// (S, H, E). `None`, with nothing written, if there is no kernel for these tensors (CUDA, other dtypes).
    pub(super) fn step(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Option<Tensor> {
        if q.device() != Device::Cpu {
            return None;
        }
        self.layer(layer, k);
        let (keys, values) = self.layers[layer].as_ref()?;
        native::decode_attention(q, (k, v), (keys, values), &self.lengths, scale)
    }

    /// Returns views of one layer's keys and values, (slots, K, longest, E), where `longest` is the number of tokens
    /// to show.
    pub(super) fn read(&self, layer: usize, longest: i64) -> (Tensor, Tensor) {
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        let live = |t: &Tensor| t.narrow(0, 0, self.lengths.len() as i64).narrow(2, 0, longest);
        (live(k), live(v))
    }

    /// Returns the rows, (T * K), to which each head of each new token is written in a table flattened to
    /// (slot_capacity * K * capacity, E).
    pub(super) fn table_rows(&self, added: &[i64], heads: i64, device: Device) -> Tensor {
        let tokens = (0..self.lengths.len()).flat_map(|s| (0..added[s]).map(move |t| (s as i64, self.lengths[s] + t)));
        let rows: Vec<i64> =
            tokens.flat_map(|(s, t)| (0..heads).map(move |h| (s * heads + h) * self.capacity + t)).collect();
        Tensor::from_slice(&rows).to_device(device)
    }

    /// Adds to each slot's length the tokens that the pass has just written.
    pub fn advance(&mut self, added: &[i64]) {
        for (l, a) in self.lengths.iter_mut().zip(added) {
            *l += a;
        }
    }

    /// Shortens a slot to its first `length` tokens; a shorter slot stays as it is.
    pub fn truncate(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = self.lengths[slot].min(length);
    }

    /// Keeps only the given slots, in the given order. If no slot moves to a higher number (`slots[i] >= i`, as when
    /// the last slot replaces a removed one), only the slots that move are copied; otherwise all tables are.
    pub fn retain_slots(&mut self, slots: &[usize]) {
        let lengths: Vec<i64> = slots.iter().map(|&s| self.lengths[s]).collect();
        if slots.iter().enumerate().all(|(to, from)| *from >= to) {
            for (to, &from) in slots.iter().enumerate().filter(|(to, from)| **from > *to) {
                self.copy(from, to, self.lengths[from]);
            }
        } else {
            let order: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
            for t in self.tables() {
                *t = t.index_select(0, &Tensor::from_slice(&order).to_device(t.device()));
            }
            self.slot_capacity = order.len() as i64;
        }
        self.lengths = lengths;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    /// Two heads of size 1; token t of slot s has the key 100 s + t in head 0, and its negative in head 1.
    fn filled(lengths: &[i64]) -> KvCache {
        let mut cache = KvCache::new(1, lengths.len());
        add(&mut cache, &(0..lengths.len() as i64).collect::<Vec<_>>(), lengths);
        cache
    }

    fn add(cache: &mut KvCache, names: &[i64], added: &[i64]) {
        cache.reserve(added);
        let at = |s: usize| (cache.lengths[s]..cache.lengths[s] + added[s]).map(move |t| (100 * names[s] + t) as f32);
        let keys: Vec<f32> = (0..added.len()).flat_map(at).flat_map(|x| [x, -x]).collect();
        let k = Tensor::from_slice(&keys).view([-1, 2, 1]);
        let places = cache.table_rows(added, 2, Device::Cpu);
        cache.write(0, &k, &(&k + 0.5), &places);
        cache.advance(added);
    }

    /// Checks that every slot has the keys and values of the sequence called `names[s]`.
    fn check(cache: &KvCache, names: &[i64]) {
        assert_eq!(cache.lengths.len(), names.len());
        let (k, v) = cache.read(0, *cache.lengths.iter().max().unwrap());
        for (s, (&name, &length)) in names.iter().zip(&cache.lengths).enumerate() {
            let expected = Tensor::arange(length, (Kind::Float, Device::Cpu)) + 100.0 * name as f64;
            let of = |t: &Tensor, head: i64| t.get(s as i64).get(head).narrow(0, 0, length).view([-1]);
            assert_eq!(of(&k, 0), expected, "slot {s}");
            assert_eq!(of(&k, 1), -&expected, "slot {s}");
            assert_eq!(of(&v, 0), expected + 0.5, "slot {s}");
        }
    }

    #[test]
    fn slots_keep_their_tokens_while_the_cache_grows_and_shrinks() {
        let mut cache = filled(&[3, 130, 1, 7]);
        check(&cache, &[0, 1, 2, 3]);
        cache.retain_slots(&[3, 1, 2]); // in place: the last slot replaces the first
        check(&cache, &[3, 1, 2]);
        add(&mut cache, &[3, 1, 2], &[300, 1, 2]); // grows
        check(&cache, &[3, 1, 2]);
        assert_eq!(cache.lengths, [307, 131, 3]);
        cache.retain_slots(&[2, 0, 1]); // a rotation: not in place
        check(&cache, &[2, 3, 1]);
        cache.fork_slot(1); // slots double
        check(&cache, &[2, 3, 1, 3]);
        add(&mut cache, &[2, 3, 1, 3], &[0, 0, 0, 4]);
        check(&cache, &[2, 3, 1, 3]);
        cache.add_slots(2);
        add(&mut cache, &[2, 3, 1, 3, 5, 6], &[0, 0, 0, 0, 9, 2]);
        check(&cache, &[2, 3, 1, 3, 5, 6]);
        cache.retain_slots(&[0, 1, 2]);
        cache.truncate(1, 5);
        add(&mut cache, &[2, 3, 1], &[1, 1, 1]);
        check(&cache, &[2, 3, 1]);
        assert_eq!(cache.lengths, [4, 6, 132]);
    }
}
