//! Keys and values of the tokens already seen, one slot a sequence.
//!
//! A layer's table is (slots, K, capacity, E): each head's keys lie together, so that attention reads them as they are.
//! Tables grow along the capacity and shrink along the slots in place; a decoding step copies nothing that it has.

use tch::{Device, Tensor};

/// Key/value cache for batched decoding.
pub struct Cache {
    /// (slots, K, capacity, E) keys and values, made when a layer first writes.
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
        assert_eq!(added.len(), self.lengths.len(), "one segment a slot");
        let needed = self.lengths.iter().zip(added).map(|(l, a)| l + a).max().unwrap_or(0);
        if needed > self.capacity {
            let grown = (needed.max(self.capacity * 5 / 4) + STEP - 1) / STEP * STEP;
            for t in self.tables() {
                let s = t.size();
                *t = Tensor::cat(&[&*t, &t.new_zeros([s[0], s[1], grown - s[2], s[3]], (t.kind(), t.device()))], 2);
            }
            self.capacity = grown;
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flatten().flat_map(|(k, v)| [k, v])
    }

    /// Writes keys and values (T, K, E) of one layer to the `places` of their tokens.
    pub(super) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, places: &Tensor) {
        let (slots, heads, size) = (self.lengths.len() as i64, k.size()[1], k.size()[2]);
        let table = || Tensor::zeros([slots, heads, self.capacity, size], (k.kind(), k.device()));
        let (keys, values) = self.layers[layer].get_or_insert_with(|| (table(), table()));
        for (table, new) in [(keys, k), (values, v)] {
            let _ = table.view([-1, size]).index_copy_(0, places, &new.reshape([-1, size]));
        }
    }

    /// Keys and values of one layer, (slots, K, longest, E).
    pub(super) fn read(&self, layer: usize, longest: i64) -> (Tensor, Tensor) {
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        (k.narrow(2, 0, longest), v.narrow(2, 0, longest))
    }

    /// Where each head of each new token goes, (T * K) rows of the flattened (slots * K * capacity) table.
    pub(super) fn places(&self, added: &[i64], heads: i64, device: Device) -> Tensor {
        let tokens = (0..self.lengths.len()).flat_map(|s| (0..added[s]).map(move |t| (s as i64, self.lengths[s] + t)));
        let rows: Vec<i64> =
            tokens.flat_map(|(s, t)| (0..heads).map(move |h| (s * heads + h) * self.capacity + t)).collect();
        Tensor::from_slice(&rows).to_device(device)
    }

    /// Counts the tokens that the pass just added.
    pub fn advance(&mut self, added: &[i64]) {
        for (l, a) in self.lengths.iter_mut().zip(added) {
            *l += a;
        }
    }

    /// Forgets what a slot holds beyond its first `length` tokens.
    pub fn truncate(&mut self, slot: usize, length: i64) {
        self.lengths[slot] = self.lengths[slot].min(length);
    }

    /// Keeps only the given slots, in the given order. Where no slot moves up (`slots[i] >= i`, as when the last takes
    /// the place of one that left) only the slots that move are copied.
    pub fn keep(&mut self, slots: &[usize]) {
        let lengths = slots.iter().map(|&s| self.lengths[s]).collect();
        let moves: Vec<(i64, i64)> = slots.iter().enumerate().map(|(to, &from)| (to as i64, from as i64)).collect();
        let in_place = moves.iter().all(|(to, from)| from >= to);
        let order: Vec<i64> = moves.iter().map(|m| m.1).collect();
        for t in self.tables() {
            if in_place {
                for &(to, from) in moves.iter().filter(|(to, from)| from > to) {
                    t.get(to).copy_(&t.get(from));
                }
                *t = t.narrow(0, 0, order.len() as i64);
            } else {
                *t = t.index_select(0, &Tensor::from_slice(&order).to_device(t.device()));
            }
        }
        self.lengths = lengths;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    /// Two heads of size 1; token t of slot s has the key 100 s + t in head 0, and its negative in head 1.
    fn filled(lengths: &[i64]) -> Cache {
        let mut cache = Cache::new(1, lengths.len());
        add(&mut cache, &(0..lengths.len() as i64).collect::<Vec<_>>(), lengths);
        cache
    }

    fn add(cache: &mut Cache, names: &[i64], added: &[i64]) {
        cache.reserve(added);
        let at = |s: usize| (cache.lengths[s]..cache.lengths[s] + added[s]).map(move |t| (100 * names[s] + t) as f32);
        let keys: Vec<f32> = (0..added.len()).flat_map(at).flat_map(|x| [x, -x]).collect();
        let k = Tensor::from_slice(&keys).view([-1, 2, 1]);
        let places = cache.places(added, 2, Device::Cpu);
        cache.write(0, &k, &(&k + 0.5), &places);
        cache.advance(added);
    }

    /// Every slot holds what its name says.
    fn check(cache: &Cache, names: &[i64]) {
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
        cache.keep(&[3, 1, 2]); // in place: the last takes the place of the first
        check(&cache, &[3, 1, 2]);
        add(&mut cache, &[3, 1, 2], &[300, 1, 2]); // grows
        check(&cache, &[3, 1, 2]);
        assert_eq!(cache.lengths, [307, 131, 3]);
        cache.keep(&[2, 0, 1]); // a turn: not in place
        check(&cache, &[2, 3, 1]);
        cache.truncate(1, 5);
        add(&mut cache, &[2, 3, 1], &[1, 1, 1]);
        check(&cache, &[2, 3, 1]);
        assert_eq!(cache.lengths, [4, 6, 132]);
    }
}
