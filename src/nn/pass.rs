//! One forward pass through all layers: which segments, which positions, and the cache in decoding.

use super::attention::{Attention, packed_attention};
use super::cache::KvCache;
use super::experts::RouterStatistics;
use super::ops;
use super::rope::Rope;
use super::tokens::{Segments, Tokens};
use super::virtual_tokens::{VirtualPlace, VirtualRow};
use crate::native::upload;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// State of one forward pass through all layers: the packed row's segments, its positions and, for decoding, the cache.
pub struct ForwardPass<'a> {
    /// The segments that attention computes, virtual tokens included.
    segments: &'a Segments,
    /// Positions of the rows that layers compute.
    positions: &'a Tensor,
    virtual_part: Option<VirtualPart<'a>>,
    cache: Option<&'a mut KvCache>,
    /// cos and sin of each rotary embedding, by the address of its frequencies.
    angles: BTreeMap<*const Rope, (Tensor, Tensor)>,
    /// Rows of the cache that the new tokens are written to; the same for every layer.
    places: Option<Tensor>,
    /// Masks of a decoding step that have been computed, by window; the same for every layer with it.
    masks: BTreeMap<Option<i64>, Option<Tensor>>,
    /// Queries and keys of the layers given to `capture_attention`; `None` until the layer has run.
    captured: BTreeMap<usize, Option<QueriesAndKeys>>,
    /// Statistics of the routing of layers of experts that have run; `None` if they are not asked for.
    routing: Option<BTreeMap<usize, RouterStatistics>>,
}

/// The virtual tokens that segments of a pass begin with.
#[derive(Clone, Copy)]
struct VirtualPart<'a> {
    row: &'a VirtualRow,
    /// Keys and values of all layers (n, L * 2 * K * E), which only attention sees. `None`: layers compute the rows of
    /// virtual tokens as they compute others.
    keys_and_values: Option<&'a Tensor>,
}

/// Queries, keys and settings of one layer's attention, from which its attention weights can be computed.
#[derive(Debug)]
pub struct QueriesAndKeys {
    /// (T, H, E)
    pub q: Tensor,
    /// (T, K, E)
    pub k: Tensor,
    /// How scores and weights follow from them.
    pub attention: Attention,
}

impl QueriesAndKeys {
    /// Returns the same tensors cut off from the graph, so that no gradient reaches the layer. With `learns` they are
    /// new leaves that collect a gradient.
    pub fn detach(&self, learns: bool) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(learns);
        Self { q: leaf(&self.q), k: leaf(&self.k), attention: self.attention.clone() }
    }
}

impl<'a> ForwardPass<'a> {
    /// Starts a pass over a packed row. With a `cache`, the segments continue its last sequences, one each; room for
    /// them is reserved.
    pub fn new(tokens: &'a Tokens, cache: Option<&'a mut KvCache>) -> Self {
        Self::over(&tokens.segments, &tokens.positions, None, cache)
    }

    /// Starts the same over a row whose segments begin with the virtual tokens `encoded`, which enter the model at
    /// `place`.
    pub fn with_virtual_tokens(
        row: &'a VirtualRow,
        encoded: &'a Tensor,
        place: VirtualPlace,
        cache: Option<&'a mut KvCache>,
    ) -> Self {
        let (positions, keys_and_values) = match place {
            VirtualPlace::Input => (&row.positions, None),
            VirtualPlace::KeysAndValues => (&row.tokens.positions, Some(encoded)),
        };
        Self::over(&row.segments, positions, Some(VirtualPart { row, keys_and_values }), cache)
    }

    fn over(
        segments: &'a Segments,
        positions: &'a Tensor,
        virtual_part: Option<VirtualPart<'a>>,
        mut cache: Option<&'a mut KvCache>,
    ) -> Self {
        if let Some(cache) = &mut cache {
            cache.reserve(&segments.lengths);
        }
        let (angles, masks, captured) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { segments, positions, virtual_part, cache, angles, places: None, masks, captured, routing: None }
    }

    /// Removes the rows of virtual tokens from a layer's result or from its queries or keys: (T', …) -> (T, …). Returns
    /// x itself if layers compute no such rows.
    pub fn real_rows(&self, x: &Tensor) -> Tensor {
        match &self.virtual_part {
            Some(VirtualPart { row, keys_and_values: None }) => row.remove(x),
            _ => x.shallow_clone(),
        }
    }

    /// Inserts zeros for the rows of virtual tokens that layers compute: (T, …) -> (T', …).
    pub fn all_rows(&self, x: &Tensor) -> Tensor {
        match &self.virtual_part {
            Some(VirtualPart { row, keys_and_values: None }) => row.insert_zeros(x),
            _ => x.shallow_clone(),
        }
    }

    /// Keeps the queries and keys of these layers, for [`ForwardPass::take_captured`].
    pub fn capture_attention(mut self, layers: &[usize]) -> Self {
        self.captured = layers.iter().map(|i| (*i, None)).collect();
        self
    }

    /// Takes the queries and keys that a layer given to `capture_attention` has computed since the last call. `None` if
    /// it was not given or has not run.
    pub fn take_captured(&mut self, layer: usize) -> Option<QueriesAndKeys> {
        self.captured.get_mut(&layer)?.take()
    }

    /// Keeps the statistics of the routing of layers of experts if `watch` is true, for [`ForwardPass::take_routing`].
    pub fn watch_routing(mut self, watch: bool) -> Self {
        self.routing = watch.then(BTreeMap::new);
        self
    }

    /// Returns true if the statistics of the routing of layers of experts are asked for.
    pub fn watches_routing(&self) -> bool {
        self.routing.is_some()
    }

    /// Keeps the statistics of the routing of layer `layer` if they are asked for.
    pub fn record_routing(&mut self, layer: usize, statistics: impl FnOnce() -> RouterStatistics) {
        if let Some(routing) = &mut self.routing {
            routing.insert(layer, statistics());
        }
    }

    /// Takes the statistics of the routing of a layer that has run since the last call; `None` if it has no experts, or if
    /// they are not asked for.
    pub fn take_routing(&mut self, layer: usize) -> Option<RouterStatistics> {
        self.routing.as_mut()?.remove(&layer)
    }

    /// Rotates queries (T, H, E) and keys (T, K, E) by the angles of their positions. If the embedding is smaller than a
    /// head, the rest of each head stays as it is.
    pub fn rotate(&mut self, rope: &Rope, q: Tensor, k: Tensor) -> (Tensor, Tensor) {
        let (cos, sin) = self.angles(rope, q.kind());
        let (rotated, size) = (rope.size(), q.size()[2]);
        if rotated == size {
            return ops::rotate_both(q, k, &cos, &sin);
        }
        let first = |t: &Tensor| t.narrow(2, 0, rotated).contiguous();
        let rest = |t: &Tensor| t.narrow(2, rotated, size - rotated);
        let (turned_q, turned_k) = ops::rotate_both(first(&q), first(&k), &cos, &sin);
        (Tensor::cat(&[turned_q, rest(&q)], 2), Tensor::cat(&[turned_k, rest(&k)], 2))
    }

    /// Returns cos and sin of the row's positions, (T, 1, E/2) each. They are computed once per pass.
    pub fn angles(&mut self, rope: &Rope, kind: Kind) -> (Tensor, Tensor) {
        let (cos, sin) = self.angles.entry(std::ptr::from_ref(rope)).or_insert_with(|| {
            let (lengths, past) = match &self.virtual_part {
                Some(VirtualPart { row, keys_and_values: Some(_) }) => {
                    (&row.tokens.segments.lengths, Some(row.starts.as_slice()))
                }
                _ => (&self.segments.lengths, self.cache.as_ref().map(|c| c.last(self.segments.count()))),
            };
            rope.angles(self.positions, lengths, past, kind)
        });
        (cos.shallow_clone(), sin.shallow_clone())
    }

    /// Computes the causal attention of layer `layer`: q (T, H, E); k, v (T, K, E) -> (T, H, E). With a cache, writes
    /// the new keys and values to it and attends to the earlier tokens as well. T counts the rows that layers compute.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Tensor {
        if self.captured.contains_key(&layer) {
            let (q, k) = (self.real_rows(q), self.real_rows(k));
            self.captured.insert(layer, Some(QueriesAndKeys { q, k, attention: attention.clone() }));
        }
        let Some(VirtualPart { row, keys_and_values: Some(all) }) = self.virtual_part else {
            return self.attend_rows(layer, q, k, v, attention);
        };
        let (keys, values) = row.of_layer(all, layer, k.size()[1], k.size()[2]);
        // Virtual tokens ask nothing: the results of their queries are dropped.
        let (q, k, v) = (row.insert_zeros(q), row.insert(k, &keys), row.insert(v, &values));
        row.remove(&self.attend_rows(layer, &q, &k, &v, attention))
    }

    /// Computes the attention of all rows, those of virtual tokens included.
    fn attend_rows(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Tensor {
        let Some(cache) = &mut self.cache else { return packed_attention(q, k, v, self.segments, attention) };
        let lengths = &self.segments.lengths;
        let step_only = lengths.len() == cache.lengths.len() && lengths.iter().all(|n| *n == 1);
        if step_only && let Some(out) = cache.step(layer, q, k, v, attention) {
            return out;
        }
        let places = self.places.get_or_insert_with(|| cache.table_rows(lengths, k.size()[1]));
        cache.write(layer, k, v, places);
        // If no sequence that gets tokens has earlier ones, there are none to attend to.
        if cache.last(lengths.len()).iter().zip(lengths).all(|(held, new)| *held == 0 || *new == 0) {
            packed_attention(q, k, v, self.segments, attention)
        } else if step_only && q.device() == Device::Cpu {
            let longest = cache.lengths.iter().max().copied().unwrap_or(0) + 1;
            let window = attention.within(longest).window;
            let new_mask = || decode_mask(&cache.lengths, longest, window, q.kind(), q.device());
            let mask = self.masks.entry(window).or_insert_with(new_mask);
            let (k, v) = cache.read(layer, longest);
            one_token_attention(q, &k, &v, mask.as_ref(), attention)
        } else {
            continued_attention(q, cache, layer, self.segments, attention)
        }
    }
}

/// Attends from one new token of each cache slot to all tokens of that slot: q (S, H, E) -> (S, H, E). The query
/// heads that share a key head are passed as several queries of one head, so that keys need not be repeated. No
/// gradient.
fn one_token_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, attention: &Attention) -> Tensor {
    let (slots, heads, size) = (q.size()[0], k.size()[1], q.size()[2]);
    let blocks = q.view([slots, heads, -1, size]); // (S, K, G, E)
    attend_masked(&blocks, k, v, 1, mask, attention).reshape_as(q)
}

/// Attends by libtorch's kernel, or by plain products if scores are capped or there are sinks: q (S, K, G * n, E), n `queries`
/// of each head; k, v (S, K, L, E), with a mask to add to the scores -> (S, K, G * n, E).
fn attend_masked(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    queries: i64,
    mask: Option<&Tensor>,
    attention: &Attention,
) -> Tensor {
    if attention.has_plain_softmax() {
        return Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, attention.scale, false);
    }
    let scores = attention.cap(q.matmul(&k.transpose(2, 3)).to_kind(Kind::Float) * attention.scale);
    let scores = mask.map_or_else(|| scores.shallow_clone(), |mask| &scores + mask);
    let [slots, kv_heads, _, keys] = scores.size()[..] else { unreachable!("scores of sequences, heads and queries") };
    let (p, _) = attention.softmax(&scores.view([slots, kv_heads, -1, queries, keys]));
    p.reshape_as(&scores).to_kind(v.kind()).matmul(v)
}

/// Returns the additive mask of a decoding step, (S, 1, 1, longest): 0 for the tokens of a slot that its new token sees,
/// -inf before and beyond. `None` if all slots have the same length and there is no window.
fn decode_mask(lengths: &[i64], longest: i64, window: Option<i64>, kind: Kind, device: Device) -> Option<Tensor> {
    if window.is_none() && lengths.iter().all(|n| *n == lengths[0]) {
        return None;
    }
    let [held] = upload([Tensor::from_slice(lengths).view([-1, 1, 1, 1])], device);
    let places = Tensor::arange(longest, (Kind::Int64, device)).view([1, 1, 1, -1]);
    let beyond = places.gt_tensor(&held);
    let hidden = match window {
        Some(window) => beyond.logical_or(&places.le_tensor(&(held - window))),
        None => beyond,
    };
    Some(Tensor::zeros(hidden.size(), (kind, device)).masked_fill(&hidden, f64::NEG_INFINITY))
}

/// Attends from new tokens of several sequences to all their tokens, one sequence after the other: q (T, H, E), in packed order ->
/// (T, H, E). No gradient.
fn continued_attention(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    segments: &Segments,
    attention: &Attention,
) -> Tensor {
    let mut parts = Vec::with_capacity(segments.lengths.len());
    let mut row = 0;
    let first = cache.lengths.len() - segments.count();
    for (i, &n) in segments.lengths.iter().enumerate().filter(|(_, n)| **n > 0) {
        let past = cache.lengths[first + i];
        let (k, v) = cache.read_sequence(layer, first + i, past + n, q.size()[2]);
        let queries = q.narrow(0, row, n).transpose(0, 1); // (H, n, E)
        let hidden = attention.within(past + n).hidden(n, past + n, past, q.device());
        let out = match attention.has_plain_softmax() {
            true => {
                let (queries, seen) = (queries.unsqueeze(0), hidden.logical_not());
                Tensor::scaled_dot_product_attention(&queries, &k, &v, Some(&seen), 0.0, false, attention.scale, true)
            }
            false => {
                let (kv, size) = (k.size()[1], q.size()[2]);
                // (1, K, G * n, E): the queries of the heads that share a key head follow each other.
                let grouped = queries.reshape([1, kv, -1, size]);
                let mask = Tensor::zeros(hidden.size(), (Kind::Float, q.device()));
                let mask = mask.masked_fill(&hidden, f64::NEG_INFINITY).repeat([grouped.size()[2] / n, 1]);
                attend_masked(&grouped, &k, &v, n, Some(&mask), attention).view([1, -1, n, size])
            }
        };
        parts.push(out.squeeze_dim(0).transpose(0, 1));
        row += n;
    }
    Tensor::cat(&parts, 0)
}
