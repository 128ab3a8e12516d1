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
//!
//! A layer with a sliding window keeps what its next token sees and little more ([`kept_tokens`]): layers with equal windows
//! keep the same tokens.

mod device_index;
mod kept_tokens;
mod recorded;

use super::attention::Attention;
use super::state_cache::StateCache;
use super::weight::cast;
use crate::machine;
use crate::native::{self, upload_slice};
use device_index::DeviceIndex;
use kept_tokens::{KeptTokens, Move, Placement};
pub use recorded::TensorPlace;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Sizes of a model that the layout of its cache depends on.
#[derive(Debug, Clone)]
pub struct CacheLayout {
    /// For each layer with keys and values the number of tokens that a token sees, itself included; `None`: all before it.
    pub windows: Rc<[Option<i64>]>,
    /// Number of recurrent layers, which have a state for each sequence instead.
    pub recurrent: usize,
    /// H, the number of query heads.
    pub heads: i64,
    /// K, the number of key and value heads.
    pub kv_heads: i64,
    /// The device of keys and values.
    pub device: Device,
}

impl CacheLayout {
    /// Returns the number of tables that exist at the same time: keys and values of every layer; on a device also one that is
    /// replaced by a larger one.
    pub fn tables(&self) -> u64 {
        2 * self.windows.len() as u64 + u64::from(self.device != Device::Cpu)
    }

    /// Returns how many tokens of a sequence of `length` tokens a table keeps, as the mean over all [`tables`](Self::tables),
    /// rounded up: fewer than `length` if layers have windows.
    pub fn kept_tokens(&self, length: i64) -> i64 {
        let of_layers = self.windows.iter().map(|window| KeptTokens::most(*window, length));
        let largest = of_layers.clone().max().unwrap_or(0);
        let replaced = if self.device == Device::Cpu { 0 } else { largest };
        let all = 2 * of_layers.sum::<i64>() + replaced;
        let tables = self.tables() as i64;
        ((all + tables - 1) / tables.max(1)).max(1)
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
    /// The tokens that are kept, for each different window of the layers.
    kept: Vec<KeptTokens>,
    /// For each layer the index of what it keeps.
    kept_by: Vec<usize>,
    states: StateCache,
    /// Number of tokens of each sequence, virtual ones included.
    pub lengths: Vec<i64>,
    /// The slot of each sequence; on the CPU its own number.
    slots: Vec<usize>,
    /// Number of slots that the tables have room for.
    slot_capacity: i64,
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

impl KvCache {
    /// Returns an empty cache for `sequences` sequences.
    pub fn new(layout: CacheLayout, sequences: usize) -> Self {
        let mut windows: BTreeSet<Option<i64>> = layout.windows.iter().copied().collect();
        if windows.is_empty() {
            // Recurrent models have no tables, but the positions of their tokens are asked for as well.
            windows.insert(None);
        }
        let windows: Vec<Option<i64>> = windows.into_iter().collect();
        let number =
            |window: &Option<i64>| windows.iter().position(|w| w == window).expect("one of the layers' windows");
        Self {
            layers: layout.windows.iter().map(|_| None).collect(),
            kept_by: layout.windows.iter().map(number).collect(),
            kept: windows.iter().map(|window| KeptTokens::new(*window, sequences)).collect(),
            states: StateCache::new(layout.recurrent, layout.device),
            lengths: vec![0; sequences],
            slots: (0..sequences).collect(),
            slot_capacity: sequences as i64,
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
        if !self.on_device() {
            return;
        }
        let slots = slots.max(self.lengths.len()) as i64;
        let capacities: Vec<i64> = (0..self.kept.len())
            .map(|g| KeptTokens::most(self.kept[g].window, capacity).max(self.longest_stored(g)))
            .collect();
        let larger = self.kept.iter().zip(&capacities).any(|(kept, capacity)| *capacity > kept.capacity);
        if slots > self.slot_capacity || larger {
            self.resize(slots, &capacities);
        }
    }

    /// Returns the number of tokens that layers of the group `g` have of each sequence.
    fn stored(&self, g: usize) -> Vec<i64> {
        self.lengths.iter().enumerate().map(|(s, length)| self.kept[g].stored(s, *length)).collect()
    }

    fn longest_stored(&self, g: usize) -> i64 {
        self.stored(g).into_iter().max().unwrap_or(0)
    }

    /// Makes room for `added[i]` more tokens of the last sequences, one entry for each. Must be called before the
    /// layers run.
    pub fn reserve(&mut self, added: &[i64]) {
        let first = self.first(added.len());
        for g in 0..self.kept.len() {
            self.kept[g].placement = None;
            let stored = self.stored(g);
            let needed = stored[first..].iter().zip(added).map(|(n, a)| n + a).max().unwrap_or(0);
            let kept = &self.kept[g];
            let most = KeptTokens::most(kept.window, i64::MAX);
            if needed > kept.capacity && kept.capacity < most {
                let capacity = (needed.max(kept.capacity * 2) + CAPACITY_STEP - 1) / CAPACITY_STEP * CAPACITY_STEP;
                let mut capacities: Vec<i64> = self.kept.iter().map(|kept| kept.capacity).collect();
                capacities[g] = capacity.min(most);
                self.resize(self.slot_capacity, &capacities);
            }
            self.remove_unseen(g, first, &stored, added);
        }
    }

    /// Removes old tokens of the sequences from number `first` on, if `added` more then have room. Otherwise the pass
    /// itself removes them, after it has read them.
    fn remove_unseen(&mut self, g: usize, first: usize, stored: &[i64], added: &[i64]) {
        let mut moves = Vec::new();
        for (s, added) in (first..).zip(added) {
            let Some(after) = self.kept[g].shortened(stored[s], *added) else { continue };
            if after.old >= self.kept[g].seen(stored[s]) {
                if after.old > 0 {
                    moves.push(Move { slot: self.slots[s], from: stored[s] - after.old, count: after.old });
                }
                self.kept[g].first[s] = self.lengths[s] - after.old;
                self.kept[g].index = None;
            }
        }
        for t in self.tables(g) {
            moves.iter().for_each(|m| m.apply(t));
        }
    }

    /// Returns the lengths of the last `count` sequences, which a pass with as many segments continues.
    pub fn last(&self, count: usize) -> &[i64] {
        &self.lengths[self.first(count)..]
    }

    fn first(&self, count: usize) -> usize {
        self.lengths.len().checked_sub(count).expect("a sequence for each segment")
    }

    /// Replaces every table by one of `slots` slots of as many tokens as `capacities` has for its window. They have room for all
    /// sequences.
    fn resize(&mut self, slots: i64, capacities: &[i64]) {
        // Sequences in slots that will not exist move to free ones that will.
        for s in 0..self.slots.len() {
            if self.slots[s] as i64 >= slots {
                let free = self.free_slot();
                self.copy(self.slots[s], free..free + 1, s);
                self.slots[s] = free;
            }
        }
        let same_slots = slots == self.slot_capacity;
        let kept_slots = slots.min(self.slot_capacity);
        for (g, &capacity) in capacities.iter().enumerate() {
            if same_slots && capacity == self.kept[g].capacity {
                continue;
            }
            let longest = self.longest_stored(g);
            for t in self.tables(g) {
                let [_, heads, _, size] = t.size()[..] else { unreachable!("a table has four dimensions") };
                let new = new_table([slots, heads, capacity, size], t.kind(), t.device());
                let part = |t: &Tensor| t.narrow(0, 0, kept_slots).narrow(2, 0, longest);
                part(&new).copy_(&part(t));
                *t = new;
            }
            (self.kept[g].capacity, self.kept[g].index) = (capacity, None);
        }
        self.states.resize(slots);
        self.slot_capacity = slots;
    }

    /// Does the same with as much room in each slot as there is.
    fn resize_slots(&mut self, slots: i64) {
        let capacities: Vec<i64> = self.kept.iter().map(|kept| kept.capacity).collect();
        self.resize(slots, &capacities);
    }

    /// Returns the first slot without a sequence.
    fn free_slot(&self) -> usize {
        (0..).find(|slot| !self.slots.contains(slot)).expect("there are finitely many sequences")
    }

    /// Adds `count` empty sequences after those there are.
    pub fn add_slots(&mut self, count: usize) {
        for _ in 0..count {
            let slot = self.free_slot();
            self.states.clear(slot);
            self.slots.push(slot);
            self.lengths.push(0);
            self.kept.iter_mut().for_each(|kept| kept.first.push(0));
        }
        self.forget_indices();
        let live = self.lengths.len() as i64;
        if live > self.slot_capacity {
            self.resize_slots(live.max(self.slot_capacity * 2));
        }
    }

    /// Adds `count` sequences that are copies of sequence `from`.
    pub fn fork_slot(&mut self, from: usize, count: usize) {
        let (old, length, source) = (self.lengths.len(), self.lengths[from], self.slots[from]);
        self.add_slots(count);
        self.lengths[old..].fill(length);
        for kept in &mut self.kept {
            let first = kept.first[from];
            kept.first[old..].fill(first);
        }
        let new: Vec<usize> = self.slots[old..].to_vec();
        // Slots that follow each other are filled by one operation per table.
        for run in new.chunk_by(|a, b| a + 1 == *b) {
            self.copy(source, run[0]..run[0] + run.len(), from);
        }
    }

    /// Copies the tokens of sequence `sequence`, which are in slot `from`, over those in the slots `to`, in every layer.
    fn copy(&mut self, from: usize, to: Range<usize>, sequence: usize) {
        for g in 0..self.kept.len() {
            let stored = self.kept[g].stored(sequence, self.lengths[sequence]);
            for t in self.tables(g) {
                let source = t.get(from as i64).narrow(1, 0, stored);
                t.narrow(0, to.start as i64, to.len() as i64).narrow(2, 0, stored).copy_(&source);
            }
        }
        self.states.copy(from, to);
    }

    /// Returns the tables of the layers of group `g`.
    fn tables(&mut self, g: usize) -> impl Iterator<Item = &mut Tensor> {
        let of_group = self.layers.iter_mut().zip(&self.kept_by).filter(move |(_, kept_by)| **kept_by == g);
        of_group.filter_map(|(tables, _)| tables.as_mut()).flat_map(|(k, v)| [k, v])
    }

    fn forget_indices(&mut self) {
        self.kept.iter_mut().for_each(|kept| kept.index = None);
    }

    /// Returns one layer's tables; allocates them for keys of the dtype and sizes of `k` (T, K, E) if there are none
    /// yet.
    fn layer(&mut self, layer: usize, k: &Tensor) -> &(Tensor, Tensor) {
        let size = stored_head_dim(k.size()[2], self.layout.device);
        let shape = [self.slot_capacity, k.size()[1], self.kept[self.kept_by[layer]].capacity, size];
        let table = || new_table(shape, k.kind(), k.device());
        self.layers[layer].get_or_insert_with(|| (table(), table()))
    }

    /// Writes the keys and values (T, K, E) of one layer's new tokens of the last sequences, `added[i]` of each. Removes old
    /// tokens if there is no room for all: whoever needs them reads them before ([`KvCache::earlier`]).
    pub(super) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, added: &[i64]) {
        let g = self.kept_by[layer];
        if self.kept[g].placement.is_none() {
            self.kept[g].placement = Some(self.place(g, added));
        }
        self.layer(layer, k);
        let (keys, values) = self.layers[layer].as_ref().expect("made above");
        let Placement { moves, kept, rows, .. } = self.kept[g].placement.as_ref().expect("made above");
        for table in [keys, values] {
            moves.iter().for_each(|m| m.apply(table));
        }
        let written = |t: &Tensor| kept.as_ref().map_or_else(|| t.shallow_clone(), |kept| t.index_select(0, kept));
        write_rows((keys, values), (&written(k), &written(v)), rows);
    }

    /// Decides where the tables of group `g` get `added[i]` new tokens of each of the last sequences.
    fn place(&self, g: usize, added: &[i64]) -> Placement {
        let (heads, capacity) = (self.layout.kv_heads, self.kept[g].capacity);
        let (mut moves, mut first, mut kept, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::<i64>::new());
        let mut row = 0;
        for (s, &added) in (self.first(added.len())..).zip(added) {
            let stored = self.kept[g].stored(s, self.lengths[s]);
            let (mut at, mut new) = (stored, added);
            if let Some(after) = self.kept[g].shortened(stored, added) {
                (at, new) = (after.old, after.new);
                if after.old > 0 {
                    moves.push(Move { slot: self.slots[s], from: stored - after.old, count: after.old });
                }
                first.push((s, self.lengths[s] + added - after.old - after.new));
            }
            kept.extend(row + added - new..row + added);
            row += added;
            let slot = self.slots[s] as i64;
            let of_token = |t: i64| (0..heads).map(move |h| (slot * heads + h) * capacity + t);
            rows.extend((at..at + new).flat_map(of_token));
        }
        let all = kept.len() as i64 == row;
        let device = self.layout.device;
        let kept = (!all).then(|| upload_slice(&kept, device));
        Placement { moves, kept, rows: upload_slice(&rows, device), first }
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
        if attention.changes_scores() || (attention.sinks.is_some() && self.on_device()) {
            return None;
        }
        if self.on_device() {
            return self.device_step(layer, q, k, v, attention);
        }
        self.layer(layer, k);
        let stored = self.stored(self.kept_by[layer]);
        let (keys, values) = self.layers[layer].as_ref()?;
        let sinks = attention.sinks.as_ref().map(|sinks| cast(sinks, Kind::Float).contiguous());
        let scores = (attention.scale, sinks.as_ref());
        native::decode_attention(q, (k, v), (keys, values), &stored, attention.window, scores)
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
        let (count, g) = (self.lengths.len() as i64, self.kept_by[layer]);
        let next = self.index(g).next.slice(0, count, None, 1);
        self.layer(layer, k);
        let (size, (keys, values)) = (q.size()[2], self.layers[layer].as_ref().expect("made above"));
        write_rows((keys, values), (k, v), &next);
        let stored = keys.size()[3];
        let rows = |t: &Tensor| t.view([1, -1, 1, stored]);
        let index = self.kept[g].index.as_ref().expect("made above");
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

    /// Returns what a decoding step on a device reads for the layers of group `g`.
    fn index(&mut self, g: usize) -> &DeviceIndex {
        if self.kept[g].index.is_none() {
            let (stored, capacity) = (self.stored(g), self.kept[g].capacity);
            let index = DeviceIndex::new(&self.lengths, &stored, &self.slots, capacity, &self.layout);
            self.kept[g].index = Some(index);
        }
        self.kept[g].index.as_ref().expect("made above")
    }

    /// Returns the positions (S) of every sequence's next token, on the cache's device. On a device they are changed
    /// when the cache advances.
    pub fn next_positions(&mut self) -> Tensor {
        if self.on_device() {
            let count = self.lengths.len() as i64;
            return self.index(0).next.narrow(0, 0, count);
        }
        Tensor::from_slice(&self.lengths)
    }

    /// Returns the boundaries (S + 1) int32 of segments of one token, one for each sequence.
    pub fn step_bounds(&mut self) -> Tensor {
        if self.on_device() {
            return self.index(0).segment_bounds.shallow_clone();
        }
        Tensor::arange(self.lengths.len() as i64 + 1, (Kind::Int, Device::Cpu))
    }

    /// Returns the number of tokens that one layer has of each sequence.
    pub(super) fn stored_in(&self, layer: usize) -> Vec<i64> {
        self.stored(self.kept_by[layer])
    }

    /// Returns views of one layer's keys and values on the CPU, (S, K, longest, E), where `longest` is the number of
    /// tokens to show, from the first that is kept.
    pub(super) fn read(&self, layer: usize, longest: i64) -> (Tensor, Tensor) {
        assert!(!self.on_device(), "sequences lie in order on the CPU only");
        let live = |t: &Tensor| t.narrow(0, 0, self.lengths.len() as i64).narrow(2, 0, longest);
        let (k, v) = self.layers[layer].as_ref().expect("written before read");
        (live(k), live(v))
    }

    /// Returns views of the keys and values of one layer that new tokens of a sequence may see, those before them:
    /// (1, K, P, `head_dim`). `None` if there are none.
    pub(super) fn earlier(&self, layer: usize, sequence: usize, head_dim: i64) -> Option<(Tensor, Tensor)> {
        let (kept, slot) = (&self.kept[self.kept_by[layer]], self.slots[sequence] as i64);
        let stored = kept.stored(sequence, self.lengths[sequence]);
        let seen = kept.seen(stored);
        let (k, v) = self.layers[layer].as_ref().filter(|_| seen > 0)?;
        let part = |t: &Tensor| t.narrow(0, slot, 1).narrow(2, stored - seen, seen).narrow(3, 0, head_dim);
        Some((part(k), part(v)))
    }

    /// Returns the states of the last `count` sequences in recurrent layer `layer`, zeros before their first token:
    /// (`count`, `width`) float32.
    pub(super) fn read_states(&mut self, layer: usize, count: usize, width: i64) -> Tensor {
        self.states.read(layer, &self.slots[self.slots.len() - count..], self.slot_capacity, width)
    }

    /// Replaces the states of the last sequences in recurrent layer `layer` by `states` (S, width).
    pub(super) fn write_states(&mut self, layer: usize, states: &Tensor) {
        let first = self.first(states.size()[0] as usize);
        self.states.write(layer, &self.slots[first..], states);
    }

    /// Adds to the lengths of the last sequences the tokens that the pass has just written.
    pub fn advance(&mut self, added: &[i64]) {
        let first = self.first(added.len());
        for (l, a) in self.lengths[first..].iter_mut().zip(added) {
            *l += a;
        }
        let step = first == 0 && added.iter().all(|a| *a == 1);
        for kept in &mut self.kept {
            for (s, position) in kept.placement.take().into_iter().flat_map(|placement| placement.first) {
                kept.first[s] = position;
            }
            match &mut kept.index {
                Some(index) if step => index.advance(),
                index => *index = None,
            }
        }
    }

    /// Shortens a sequence to its first `length` tokens; a shorter one stays as it is. If layers with a window no longer have
    /// what the next token would see, or recurrent layers no longer their earlier state, the sequence becomes empty. Returns its
    /// number of tokens.
    pub fn truncate(&mut self, sequence: usize, length: i64) -> i64 {
        let length = self.lengths[sequence].min(length);
        let whole = self.kept.iter().all(|kept| kept.reaches(sequence, length));
        let cut = length < self.lengths[sequence];
        if !whole || length == 0 || (cut && self.layout.recurrent > 0) {
            self.lengths[sequence] = 0;
            self.kept.iter_mut().for_each(|kept| kept.first[sequence] = 0);
            self.states.clear(self.slots[sequence]);
        } else {
            self.lengths[sequence] = length;
        }
        self.forget_indices();
        self.lengths[sequence]
    }

    /// Keeps only the given sequences, in the given order; one that is named several times is copied. On a device
    /// nothing else is copied. On the CPU, if none moves to a higher number (`kept[i] >= i`, as when the last one
    /// replaces a removed one), only those that move are copied; otherwise all tables are.
    pub fn retain_slots(&mut self, kept: &[usize]) {
        let slots: Vec<usize> = kept.iter().map(|&s| self.slots[s]).collect();
        let distinct = slots.iter().collect::<BTreeSet<_>>().len() == slots.len();
        if self.on_device() && distinct {
            self.slots = slots;
        } else if !self.on_device() && kept.iter().enumerate().all(|(to, from)| *from >= to) {
            for (to, &from) in kept.iter().enumerate().filter(|(to, from)| **from > *to) {
                self.copy(from, to..to + 1, from);
            }
            self.slots.truncate(kept.len());
        } else {
            let order: Vec<i64> = slots.iter().map(|s| *s as i64).collect();
            let order = upload_slice(&order, self.layout.device);
            for g in 0..self.kept.len() {
                for t in self.tables(g) {
                    *t = t.index_select(0, &order);
                }
            }
            self.states.select(&order);
            self.slot_capacity = kept.len() as i64;
            self.slots = (0..kept.len()).collect();
        }
        self.lengths = kept.iter().map(|&s| self.lengths[s]).collect();
        for of_window in &mut self.kept {
            of_window.first = kept.iter().map(|&s| of_window.first[s]).collect();
        }
        self.forget_indices();
    }
}

/// Writes keys and values (n, K, E) to the rows (n * K) of two flattened tables.
fn write_rows((keys, values): (&Tensor, &Tensor), (k, v): (&Tensor, &Tensor), rows: &Tensor) {
    let size = keys.size()[3];
    for (table, new) in [(keys, k), (values, v)] {
        let _ = table.view([-1, size]).index_copy_(0, rows, &widen(new, size).reshape([-1, size]));
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
pub fn attends_cached(kind: Kind, device: Device) -> bool {
    match (kind, device) {
        (Kind::Float | Kind::Half, Device::Cuda(_)) => true,
        (Kind::BFloat16, Device::Cuda(i)) => machine::cuda_capability(i).is_none_or(|c| c >= (8, 0)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
