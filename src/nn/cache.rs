//! Key/value cache of decoding: one slot for each sequence.
//!
//! Copying the cache at every decoding step would cost more than the step. So each layer has one table of keys and
//! one of values, (slot capacity, K, capacity, E), in which the keys of a head are contiguous and attention reads
//! them in place. Tables are replaced one at a time, so that a larger cache never exists beside the smaller one.
//!
//! On the CPU sequence s is in slot s: kernels read the tables in order, a sequence that is removed is overwritten by
//! the last one, and a table doubles its number of slots or its capacity when it is full, because memory is taken only
//! where it is written. On a device the kernels read any slot ([`DeviceIndex`]), so nothing moves when a sequence ends,
//! and whoever has a budget allocates exactly that ([`KvCache::allocate`]).

use super::attention::Attention;
use super::weight::cast;
use crate::machine;
use crate::native::{self, upload_slice};
use std::collections::BTreeSet;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Sizes of a model that the layout of its cache depends on.
#[derive(Debug, Clone, Copy)]
pub struct CacheLayout {
    /// Number of layers.
    pub depth: usize,
    /// H, the number of query heads.
    pub heads: i64,
    /// K, the number of key and value heads.
    pub kv_heads: i64,
    /// The device of keys and values.
    pub device: Device,
}

impl CacheLayout {
    /// Returns the number of tables: keys and values of every layer.
    pub fn tables(&self) -> u64 {
        2 * self.depth as u64
    }

    /// Returns the bytes that one token takes in one table, for heads of size `head_dim` (E) in dtype `kind`.
    pub fn row_bytes(&self, head_dim: i64, kind: Kind) -> u64 {
        self.kv_heads as u64 * stored_head_dim(head_dim, self.device) as u64 * kind.elt_size_in_bytes() as u64
    }
}

/// Key/value cache for batched decoding.
pub struct KvCache {
    layout: CacheLayout,
    /// Keys and values, (slot_capacity, K, capacity, E) each; allocated when the layer first writes.
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Number of tokens of each sequence, virtual ones included.
    pub lengths: Vec<i64>,
    /// The slot of each sequence; on the CPU its own number.
    slots: Vec<usize>,
    /// Number of slots that the tables have room for.
    slot_capacity: i64,
    /// Number of tokens that each slot has room for.
    capacity: i64,
    /// What a decoding step on a device reads; `None` before the first step, and after any other change of the
    /// sequences.
    index: Option<DeviceIndex>,
}

/// The capacity of a slot that grows is a multiple of this number of tokens.
const CAPACITY_STEP: i64 = 128;

/// Heads in the tables of a device have a multiple of this many numbers, which its attention kernels demand.
const DEVICE_HEAD_STEP: i64 = 8;

/// Returns the number of numbers that a head of size `head_dim` (E) takes in the tables of a device.
fn stored_head_dim(head_dim: i64, device: Device) -> i64 {
    if device == Device::Cpu {
        head_dim
    } else {
        (head_dim + DEVICE_HEAD_STEP - 1) / DEVICE_HEAD_STEP * DEVICE_HEAD_STEP
    }
}

/// Where the next token of every sequence goes and which keys it attends to. It stays on the device from step to step:
/// a step increments it there. In the tables of the kernels, every head of every sequence is a sequence of its own,
/// number s * K + h, with G queries.
struct DeviceIndex {
    /// (S + S * K) int64: the positions of the next tokens, then the table rows that their heads are written to. One
    /// tensor, so that one operation increments all of them.
    next: Tensor,
    /// (S * K) int32: number of keys of each head, that of the next token included.
    held: Tensor,
    /// (S * K + 1) int32: the table row of each head's first key, and a last entry that is not read.
    starts: Tensor,
    /// (S * K + 1) int32: the first query of each head.
    query_bounds: Tensor,
    /// (S + 1) int32: boundaries of segments of one token.
    segment_bounds: Tensor,
}

impl DeviceIndex {
    fn new(lengths: &[i64], slots: &[usize], capacity: i64, layout: CacheLayout) -> Self {
        let (k, g, n) = (layout.kv_heads, layout.heads / layout.kv_heads, lengths.len() as i64);
        let heads =
            || slots.iter().zip(lengths).flat_map(|(s, l)| (0..k).map(move |h| ((*s as i64 * k + h) * capacity, *l)));
        let next: Vec<i64> = lengths.iter().copied().chain(heads().map(|(start, length)| start + length)).collect();
        let narrow: Vec<i32> = heads()
            .map(|(_, length)| length + 1)
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
    fn seen(&self, window: Option<i64>) -> [Tensor; 2] {
        let Some(window) = window else { return [self.starts.shallow_clone(), self.held.shallow_clone()] };
        let skipped = (&self.held - window).clamp_min(0).constant_pad_nd([0, 1]);
        [&self.starts + skipped, self.held.clamp_max(window)]
    }

    /// Moves on by one token of every sequence.
    fn advance(&mut self) {
        self.next += 1;
        self.held += 1;
    }
}

impl KvCache {
    /// Returns an empty cache for `sequences` sequences.
    pub fn new(layout: CacheLayout, sequences: usize) -> Self {
        Self {
            layers: (0..layout.depth).map(|_| None).collect(),
            lengths: vec![0; sequences],
            slots: (0..sequences).collect(),
            slot_capacity: sequences as i64,
            capacity: 0,
            index: None,
            layout,
        }
    }

    fn on_device(&self) -> bool {
        self.layout.device != Device::Cpu
    }

    /// Makes room for exactly `slots` sequences of up to `capacity` tokens on a device, if there is not room for as
    /// many and as long ones already. Until a sequence outgrows this, the cache takes no other memory. On the CPU
    /// nothing is done.
    pub fn allocate(&mut self, slots: usize, capacity: i64) {
        if self.on_device() && (slots as i64 > self.slot_capacity || capacity > self.capacity) {
            self.resize(slots.max(self.lengths.len()) as i64, capacity.max(self.longest()));
        }
    }

    fn longest(&self) -> i64 {
        self.lengths.iter().max().copied().unwrap_or(0)
    }

    /// Makes room for `added[i]` more tokens of the last sequences, one entry for each. Must be called before the
    /// layers run.
    pub fn reserve(&mut self, added: &[i64]) {
        let needed = self.last(added.len()).iter().zip(added).map(|(l, a)| l + a).max().unwrap_or(0);
        if needed > self.capacity {
            let capacity = (needed.max(self.capacity * 2) + CAPACITY_STEP - 1) / CAPACITY_STEP * CAPACITY_STEP;
            self.resize(self.slot_capacity, capacity);
        }
    }

    /// Returns the lengths of the last `count` sequences, which a pass with as many segments continues.
    pub fn last(&self, count: usize) -> &[i64] {
        &self.lengths[self.first(count)..]
    }

    fn first(&self, count: usize) -> usize {
        self.lengths.len().checked_sub(count).expect("a sequence for each segment")
    }

    /// Replaces every table by one of `slots` slots of `capacity` tokens, which have room for all sequences.
    fn resize(&mut self, slots: i64, capacity: i64) {
        // Sequences in slots that will not exist move to free ones that will.
        for s in 0..self.slots.len() {
            if self.slots[s] as i64 >= slots {
                let free = self.free_slot();
                self.copy(self.slots[s], free..free + 1, self.lengths[s]);
                self.slots[s] = free;
            }
        }
        let (kept, longest) = (slots.min(self.slot_capacity), self.longest());
        for t in self.tables() {
            let [_, heads, _, size] = t.size()[..] else { unreachable!("a table has four dimensions") };
            let new = new_table([slots, heads, capacity, size], t.kind(), t.device());
            let part = |t: &Tensor| t.narrow(0, 0, kept).narrow(2, 0, longest);
            part(&new).copy_(&part(t));
            *t = new;
        }
        (self.slot_capacity, self.capacity, self.index) = (slots, capacity, None);
    }

    /// Returns the first slot without a sequence.
    fn free_slot(&self) -> usize {
        (0..).find(|slot| !self.slots.contains(slot)).expect("there are finitely many sequences")
    }

    /// Adds `count` empty sequences after those there are.
    pub fn add_slots(&mut self, count: usize) {
        for _ in 0..count {
            self.slots.push(self.free_slot());
            self.lengths.push(0);
        }
        self.index = None;
        let live = self.lengths.len() as i64;
        if live > self.slot_capacity {
            self.resize(live.max(self.slot_capacity * 2), self.capacity);
        }
    }

    /// Adds `count` sequences that are copies of sequence `from`.
    pub fn fork_slot(&mut self, from: usize, count: usize) {
        let (old, held, source) = (self.lengths.len(), self.lengths[from], self.slots[from]);
        self.add_slots(count);
        self.lengths[old..].fill(held);
        let new: Vec<usize> = self.slots[old..].to_vec();
        // Slots that follow each other are filled by one operation per table.
        for run in new.chunk_by(|a, b| a + 1 == *b) {
            self.copy(source, run[0]..run[0] + run.len(), held);
        }
    }

    /// Copies the first `held` tokens in slot `from` over those in the slots `to`, in every layer.
    fn copy(&mut self, from: usize, to: Range<usize>, held: i64) {
        for t in self.tables() {
            let source = t.get(from as i64).narrow(1, 0, held);
            t.narrow(0, to.start as i64, to.len() as i64).narrow(2, 0, held).copy_(&source);
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flatten().flat_map(|(k, v)| [k, v])
    }

    /// Returns one layer's tables; allocates them for keys of the dtype and sizes of `k` (T, K, E) if there are none
    /// yet.
    fn layer(&mut self, layer: usize, k: &Tensor) -> &(Tensor, Tensor) {
        let size = stored_head_dim(k.size()[2], self.layout.device);
        let shape = [self.slot_capacity, k.size()[1], self.capacity, size];
        let table = || new_table(shape, k.kind(), k.device());
        self.layers[layer].get_or_insert_with(|| (table(), table()))
    }

    /// Writes keys and values (T, K, E) of one layer to the table rows `places`, as [`KvCache::table_rows`] gives them.
    pub(super) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, places: &Tensor) {
        let (keys, values) = self.layer(layer, k);
        let size = keys.size()[3];
        for (table, new) in [(keys, k), (values, v)] {
            let _ = table.view([-1, size]).index_copy_(0, places, &widen(new, size).reshape([-1, size]));
        }
    }

    /// Writes one new token for each sequence and attends from it: q (S, H, E); k and v (S, K, E) -> (S, H, E). On the
    /// CPU this is one native call. `None`, with nothing written, if there is no kernel for these tensors or settings.
    pub(super) fn step(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attention: &Attention,
    ) -> Option<Tensor> {
        if attention.softcap.is_some() || (attention.sinks.is_some() && self.on_device()) {
            return None;
        }
        if self.on_device() {
            return self.device_step(layer, q, k, v, attention);
        }
        self.layer(layer, k);
        let (keys, values) = self.layers[layer].as_ref()?;
        let sinks = attention.sinks.as_ref().map(|sinks| cast(sinks, Kind::Float).contiguous());
        let scores = (attention.scale, sinks.as_ref());
        native::decode_attention(q, (k, v), (keys, values), &self.lengths, attention.window, scores)
    }

    fn device_step(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attention: &Attention,
    ) -> Option<Tensor> {
        if !attends_cached(q.kind(), self.layout.device) {
            return None;
        }
        let count = self.lengths.len() as i64;
        let rows = self.index().next.slice(0, count, None, 1);
        self.write(layer, k, v, &rows);
        let (size, (keys, values)) = (q.size()[2], self.layers[layer].as_ref().expect("written before read"));
        let stored = keys.size()[3];
        let rows = |t: &Tensor| t.view([1, -1, 1, stored]);
        let index = self.index.as_ref().expect("made above");
        let [starts, held] = index.seen(attention.window);
        let out = native::cached_attention(
            &rows(&widen(q, stored).contiguous()),
            (&rows(keys), &rows(values)),
            [&index.query_bounds, &starts, &held],
            self.layout.heads / self.layout.kv_heads,
            attention.scale,
        );
        let out = out.expect("the kernel takes rows of this size").view([-1, self.layout.heads, stored]);
        Some(if stored == size { out } else { out.narrow(2, 0, size).contiguous() })
    }

    /// Returns what a decoding step on a device reads.
    fn index(&mut self) -> &DeviceIndex {
        let Self { index, lengths, slots, capacity, layout, .. } = self;
        index.get_or_insert_with(|| DeviceIndex::new(lengths, slots, *capacity, *layout))
    }

    /// Returns the positions (S) of every sequence's next token, on the cache's device. On a device they are changed
    /// when the cache advances.
    pub fn next_positions(&mut self) -> Tensor {
        if self.on_device() {
            let count = self.lengths.len() as i64;
            return self.index().next.narrow(0, 0, count);
        }
        Tensor::from_slice(&self.lengths)
    }

    /// Returns the boundaries (S + 1) int32 of segments of one token, one for each sequence.
    pub fn step_bounds(&mut self) -> Tensor {
        if self.on_device() {
            return self.index().segment_bounds.shallow_clone();
        }
        Tensor::arange(self.lengths.len() as i64 + 1, (Kind::Int, Device::Cpu))
    }

    /// Returns views of one layer's keys and values on the CPU, (S, K, longest, E), where `longest` is the number of
    /// tokens to show.
    pub(super) fn read(&self, layer: usize, longest: i64) -> (Tensor, Tensor) {
        assert!(!self.on_device(), "sequences lie in order on the CPU only");
        let live = |t: &Tensor| t.narrow(0, 0, self.lengths.len() as i64).narrow(2, 0, longest);
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        (live(k), live(v))
    }

    /// Returns views of one layer's first `length` keys and values of a sequence: (1, K, length, `head_dim`).
    pub(super) fn read_sequence(&self, layer: usize, sequence: usize, length: i64, head_dim: i64) -> (Tensor, Tensor) {
        let slot = self.slots[sequence] as i64;
        let part = |t: &Tensor| t.narrow(0, slot, 1).narrow(2, 0, length).narrow(3, 0, head_dim);
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        (part(k), part(v))
    }

    /// Returns the rows, (T * K), to which each head of each new token of the last sequences is written in a table
    /// flattened to (slot_capacity * K * capacity, E).
    pub(super) fn table_rows(&self, added: &[i64], heads: i64) -> Tensor {
        let first = self.first(added.len());
        let token = |i: usize, t: i64| (self.slots[first + i] as i64, self.lengths[first + i] + t);
        let tokens = added.iter().enumerate().flat_map(|(i, n)| (0..*n).map(move |t| token(i, t)));
        let rows: Vec<i64> =
            tokens.flat_map(|(s, t)| (0..heads).map(move |h| (s * heads + h) * self.capacity + t)).collect();
        upload_slice(&rows, self.layout.device)
    }

    /// Adds to the lengths of the last sequences the tokens that the pass has just written.
    pub fn advance(&mut self, added: &[i64]) {
        let first = self.first(added.len());
        for (l, a) in self.lengths[first..].iter_mut().zip(added) {
            *l += a;
        }
        match &mut self.index {
            Some(index) if first == 0 && added.iter().all(|a| *a == 1) => index.advance(),
            index => *index = None,
        }
    }

    /// Shortens a sequence to its first `length` tokens; a shorter one stays as it is.
    pub fn truncate(&mut self, sequence: usize, length: i64) {
        self.lengths[sequence] = self.lengths[sequence].min(length);
        self.index = None;
    }

    /// Keeps only the given sequences, in the given order; one that is named several times is copied. On a device
    /// nothing else is copied. On the CPU, if none moves to a higher number (`kept[i] >= i`, as when the last one
    /// replaces a removed one), only those that move are copied; otherwise all tables are.
    pub fn retain_slots(&mut self, kept: &[usize]) {
        let lengths: Vec<i64> = kept.iter().map(|&s| self.lengths[s]).collect();
        let slots: Vec<usize> = kept.iter().map(|&s| self.slots[s]).collect();
        let distinct = slots.iter().collect::<BTreeSet<_>>().len() == slots.len();
        if self.on_device() && distinct {
            self.slots = slots;
        } else if !self.on_device() && kept.iter().enumerate().all(|(to, from)| *from >= to) {
            for (to, &from) in kept.iter().enumerate().filter(|(to, from)| **from > *to) {
                self.copy(from, to..to + 1, self.lengths[from]);
            }
            self.slots.truncate(kept.len());
        } else {
            let order: Vec<i64> = slots.iter().map(|s| *s as i64).collect();
            let order = upload_slice(&order, self.layout.device);
            for t in self.tables() {
                *t = t.index_select(0, &order);
            }
            self.slot_capacity = kept.len() as i64;
            self.slots = (0..kept.len()).collect();
        }
        (self.lengths, self.index) = (lengths, None);
    }
}

/// Returns a new table. On the CPU it is zero: attention there reads past the end of short sequences, with weight 0.
fn new_table(shape: [i64; 4], kind: Kind, device: Device) -> Tensor {
    match device {
        Device::Cpu => Tensor::zeros(shape, (kind, device)),
        _ => Tensor::empty(shape, (kind, device)),
    }
}

/// Pads the last dimension of t (…, E) with zeros to `size`.
fn widen(t: &Tensor, size: i64) -> Tensor {
    match size - t.size()[t.dim() - 1] {
        0 => t.shallow_clone(),
        missing => t.constant_pad_nd([0, missing]),
    }
}

/// Returns true if the device has the kernel that attends to cached keys in numbers of this kind.
fn attends_cached(kind: Kind, device: Device) -> bool {
    match (kind, device) {
        (Kind::Float | Kind::Half, Device::Cuda(_)) => true,
        (Kind::BFloat16, Device::Cuda(i)) => machine::cuda_capability(i).is_none_or(|c| c >= (8, 0)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: CacheLayout = CacheLayout { depth: 1, heads: 2, kv_heads: 2, device: Device::Cpu };

    /// Two heads of size 1; token t of slot s has the key 100 s + t in head 0, and its negative in head 1.
    fn filled(lengths: &[i64]) -> KvCache {
        let mut cache = KvCache::new(LAYOUT, lengths.len());
        add(&mut cache, &(0..lengths.len() as i64).collect::<Vec<_>>(), lengths);
        cache
    }

    fn add(cache: &mut KvCache, names: &[i64], added: &[i64]) {
        cache.reserve(added);
        let at = |s: usize| (cache.lengths[s]..cache.lengths[s] + added[s]).map(move |t| (100 * names[s] + t) as f32);
        let keys: Vec<f32> = (0..added.len()).flat_map(at).flat_map(|x| [x, -x]).collect();
        let k = Tensor::from_slice(&keys).view([-1, 2, 1]);
        let places = cache.table_rows(added, 2);
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
        cache.fork_slot(1, 1); // slots double
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
