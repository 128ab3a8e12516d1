//! One forward pass through all layers: which segments, which positions, and the cache in decoding.

use super::attention::{Attention, packed_attention};
use super::cache::KvCache;
use super::experts::RouterStatistics;
use super::handed_on::{CachedKeys, HandedOn};
use super::layer_input::LayerInput;
use super::ops;
use super::recurrence::{GradientReach, TimeOrder};
use super::rope::Rope;
use super::tokens::{Segments, Tokens};
use super::virtual_tokens::{VirtualPlace, VirtualRow};
use crate::native::upload;
use std::collections::BTreeMap;
use std::rc::Rc;
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
    /// Masks of a decoding step that have been computed, with the bias of scores, by the window of the layers that they are for.
    masks: BTreeMap<Option<i64>, Option<Tensor>>,
    /// The number of tokens that each sequence has when all parts of it have been run, virtual ones included, if this row is
    /// one of several parts.
    whole_lengths: Option<&'a [i64]>,
    /// Queries and keys of the layers given to `capture_attention`; `None` until the layer has run.
    captured: BTreeMap<usize, Option<QueriesAndKeys>>,
    /// Number of rows of which layers compute the MLP at a time; `None`: all of them.
    mlp_tile: Option<i64>,
    /// Statistics of the routing of layers of experts that have run; `None` if they are not asked for.
    routing: Option<BTreeMap<usize, RouterStatistics>>,
    /// The tokens in the order of time, once a recurrent layer has asked.
    time_order: Option<Rc<TimeOrder>>,
    recurrence: RecurrenceOptions,
    /// What layers have made for later ones.
    pub(super) handed_on: HandedOn,
    /// Every layer is run once, on the result of the one before.
    pub(super) in_order: bool,
    /// The next layer's input, normalised already.
    pub(super) next_input: Option<LayerInput>,
}

/// How recurrent layers compute gradients in a pass.
#[derive(Default, Clone)]
pub struct RecurrenceOptions {
    /// Number of tokens that gradients flow back at most; `None`: to the beginning of a sequence.
    pub truncate: Option<i64>,
    /// Where the norms of the gradients of states are recorded, if they are.
    pub reach: Option<Rc<GradientReach>>,
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
        Self {
            segments,
            positions,
            virtual_part,
            cache,
            angles,
            masks,
            whole_lengths: None,
            captured,
            mlp_tile: None,
            routing: None,
            time_order: None,
            recurrence: RecurrenceOptions::default(),
            handed_on: HandedOn::new(),
            in_order: false,
            next_input: None,
        }
    }

    /// Says that the row is one of several parts of its sequences, which have `lengths` tokens when all are run, virtual ones
    /// included: keys are then rotated as in a pass over the whole.
    pub fn part_of(mut self, lengths: Option<&'a [i64]>) -> Self {
        self.whole_lengths = lengths;
        self
    }

    /// Computes the MLP of each layer for this many rows at a time, and again in the backward.
    pub fn tile_mlp(mut self, rows: Option<i64>) -> Self {
        self.mlp_tile = rows;
        self
    }

    /// Returns the number of rows of which a layer computes its MLP at a time; `None`: all of them.
    pub fn mlp_tile(&self) -> Option<i64> {
        self.mlp_tile
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

    /// Sets how recurrent layers compute gradients.
    pub fn with_recurrence(self, recurrence: RecurrenceOptions) -> Self {
        Self { recurrence, ..self }
    }

    /// Returns how recurrent layers compute gradients.
    pub fn recurrence(&self) -> &RecurrenceOptions {
        &self.recurrence
    }

    /// Returns the tokens of the row in the order of time.
    pub fn time_order(&mut self) -> Rc<TimeOrder> {
        let (segments, device) = (self.segments, self.positions.device());
        self.time_order.get_or_insert_with(|| Rc::new(TimeOrder::new(segments, device))).clone()
    }

    /// Returns the states that the segments begin with in recurrent layer `layer`: (S, width). `None` without a cache: all
    /// begin with zeros.
    pub fn states_before(&mut self, layer: usize, width: i64) -> Option<Tensor> {
        let count = self.segments.count();
        Some(self.cache.as_mut()?.read_states(layer, count, width))
    }

    /// Writes the states (S, width) after the segments of recurrent layer `layer` to the cache.
    pub fn set_states(&mut self, layer: usize, states: &Tensor) {
        if let Some(cache) = &mut self.cache {
            cache.write_states(layer, states);
        }
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

    /// Does the same to queries and keys that were computed together with the values v (T, K, E), which stay as they are.
    pub fn rotate_beside(&mut self, rope: &Rope, q: Tensor, k: Tensor, v: Tensor) -> [Tensor; 3] {
        if rope.size() == q.size()[2] {
            let (cos, sin) = self.angles(rope, q.kind());
            return ops::rotate_beside(q, k, v, &cos, &sin);
        }
        let (q, k) = self.rotate(rope, q, k);
        [q, k, v]
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
            let before = |(whole, n): (&i64, &i64)| whole - n;
            let of_part = self.whole_lengths.map(|whole| whole.iter().zip(lengths).map(before).collect::<Vec<_>>());
            rope.angles(self.positions, lengths, of_part.as_deref().or(past), kind)
        });
        (cos.shallow_clone(), sin.shallow_clone())
    }

    /// Computes the causal attention of layer `layer`: q (T, H, E); k, v (T, K, E) -> (T, H, E). With a cache, writes
    /// the new keys and values to it and attends to the earlier tokens as well. T counts the rows that layers compute.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Tensor {
        self.attend_to(CachedKeys { layer, write: true }, layer, [q, k, v], attention)
    }

    /// Does the same for a layer whose keys and values other layers read, too: `cached` says which layer made them, and
    /// whether this one, the last that reads them, writes them to the cache. A table with a window drops old tokens when it is
    /// written, so that all readers but the last must come before.
    pub fn attend_to(
        &mut self,
        cached: CachedKeys,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
        attention: &Attention,
    ) -> Tensor {
        if self.captured.contains_key(&layer) {
            let (q, k) = (self.real_rows(q), self.real_rows(k));
            self.captured.insert(layer, Some(QueriesAndKeys { q, k, attention: attention.clone() }));
        }
        let Some(VirtualPart { row, keys_and_values: Some(all) }) = self.virtual_part else {
            return self.attend_rows(cached, q, k, v, attention);
        };
        let (keys, values) = row.of_layer(all, layer, k.size()[1], k.size()[2]);
        // Virtual tokens ask nothing: the results of their queries are dropped.
        let (q, k, v) = (row.insert_zeros(q), row.insert(k, &keys), row.insert(v, &values));
        row.remove(&self.attend_rows(cached, &q, &k, &v, attention))
    }

    /// Computes the attention of all rows, those of virtual tokens included.
    fn attend_rows(&mut self, cached: CachedKeys, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Tensor {
        let Some(cache) = &mut self.cache else { return packed_attention(q, k, v, self.segments, attention) };
        let (CachedKeys { layer, write }, lengths) = (cached, &self.segments.lengths);
        let step_only = lengths.len() == cache.lengths.len() && lengths.iter().all(|n| *n == 1);
        // A step of one token drops nothing from a table, so that each reader may write the same numbers to the same place.
        if step_only && let Some(out) = cache.step(layer, q, k, v, attention) {
            return out;
        }
        // If no sequence that gets tokens has earlier ones, there are none to attend to.
        if cache.last(lengths.len()).iter().zip(lengths).all(|(held, new)| *held == 0 || *new == 0) {
            if write {
                cache.write(layer, k, v, lengths);
            }
            packed_attention(q, k, v, self.segments, attention)
        } else if step_only && write && q.device() == Device::Cpu {
            cache.write(layer, k, v, lengths);
            let stored = cache.stored_in(layer);
            let longest = stored.iter().max().copied().unwrap_or(0) + 1;
            let new_mask = || {
                let window = attention.within(longest).window;
                let mask = decode_mask(&stored, longest, window, q.kind(), q.device());
                with_bias(mask, attention, q, (&stored, longest), k.size()[1])
            };
            let mask = self.masks.entry(attention.window).or_insert_with(new_mask);
            let (k, v) = cache.read(layer, longest);
            one_token_attention(q, &k, &v, mask.as_ref(), attention)
        } else {
            let out = continued_attention(q, (k, v), cache, layer, self.segments, attention);
            if write {
                cache.write(layer, k, v, lengths);
            }
            out
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

/// Adds the bias of scores to the mask of a decoding step: (S, 1, 1, longest) -> (S, K, G, longest); q (S, H, E). Sequences have
/// `stored` tokens before the new one.
fn with_bias(
    mask: Option<Tensor>,
    attention: &Attention,
    q: &Tensor,
    (stored, longest): (&[i64], i64),
    kv_heads: i64,
) -> Option<Tensor> {
    let (slots, heads) = (q.size()[0], q.size()[1]);
    let Some(bias) = attention.bias_of_next(heads, stored, longest, q.device()) else { return mask };
    let bias = bias.reshape([-1, kv_heads, heads / kv_heads, longest]).to_kind(q.kind());
    Some(match mask {
        Some(mask) => mask + bias,
        None => bias.expand([slots, -1, -1, -1], false).contiguous(),
    })
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

/// Attends from new tokens of several sequences to their tokens in the cache and to each other, one sequence after the other:
/// q (T, H, E); k, v (T, K, E), which are not in the cache yet -> (T, H, E). No gradient.
fn continued_attention(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    cache: &KvCache,
    layer: usize,
    segments: &Segments,
    attention: &Attention,
) -> Tensor {
    let mut parts = Vec::with_capacity(segments.lengths.len());
    let mut row = 0;
    let first = cache.lengths.len() - segments.count();
    for (i, &n) in segments.lengths.iter().enumerate().filter(|(_, n)| **n > 0) {
        let heads_first = |t: &Tensor| t.narrow(0, row, n).transpose(0, 1).unsqueeze(0); // (1, heads, n, E)
        let new = [q, k, v].map(heads_first);
        let out = match cache.earlier(layer, first + i, q.size()[2]) {
            Some(earlier) => attend_after(&new, &earlier, attention),
            None => attend_in_bands(&new, 0, attention),
        };
        parts.push(out.squeeze_dim(0).transpose(0, 1));
        row += n;
    }
    Tensor::cat(&parts, 0)
}

/// Attends from new tokens of one sequence to `earlier` keys and values (1, K, P, E) and to those of the new ones:
/// `[q (1, H, n, E), k, v (1, K, n, E)]` -> (1, H, n, E).
fn attend_after(new @ [q, k, v]: &[Tensor; 3], (old_k, old_v): &(Tensor, Tensor), attention: &Attention) -> Tensor {
    let (past, n) = (old_k.size()[2], q.size()[2]);
    if q.device() != Device::Cpu || !attention.within(past + n).has_plain_scores() {
        let joined = [q.shallow_clone(), Tensor::cat(&[old_k, k], 2), Tensor::cat(&[old_v, v], 2)];
        return attend_in_bands(&joined, past, attention);
    }
    // Attention to two sets of keys is the mean of both results, weighted by the sums of the exponentials of their scores.
    // So no mask over all keys is needed, and half of the scores among the new tokens are not computed.
    let (out, lse) = flash_attention(new, true, attention.scale);
    let (old_out, old_lse) = flash_attention(&[q, old_k, old_v].map(Tensor::shallow_clone), false, attention.scale);
    let share = (&old_lse - &lse).sigmoid().unsqueeze(-1); // (1, H, n, 1) float32
    let (wide, old_wide) = (out.to_kind(Kind::Float), old_out.to_kind(Kind::Float));
    let both = &wide + (old_wide - &wide) * share;
    attention.with_sinks(both, lse.logaddexp(&old_lse)).0.to_kind(q.kind())
}

/// Computes attention by libtorch's kernel for the CPU: the result (1, H, n, E) and the log-sum-exp of the scores (1, H, n).
fn flash_attention([q, k, v]: &[Tensor; 3], causal: bool, scale: f64) -> (Tensor, Tensor) {
    Tensor::internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, None::<&Tensor>, scale)
}

/// Largest number of scores of all heads that one band of queries has; limits temporary memory to about 16 bytes each.
const MAX_BAND_SCORES: i64 = 1 << 24;

/// Attends from the last n of L tokens to all of them, in bands of queries that read only the keys that they see:
/// `[q (1, H, n, E), k, v (1, K, L, E)]`, the first query at position `past` -> (1, H, n, E).
fn attend_in_bands([q, k, v]: &[Tensor; 3], past: i64, attention: &Attention) -> Tensor {
    let (heads, n, size) = (q.size()[1], q.size()[2], q.size()[3]);
    let attention = attention.within(past + n);
    let reach = attention.window.unwrap_or(past + n);
    let band = (MAX_BAND_SCORES / (heads * reach)).clamp(16, n.max(16));
    let bands = (0..n).step_by(band as usize).map(|from| {
        let (count, seen) = (band.min(n - from), attention.first_seen(past + from));
        let keys = past + from + count - seen;
        let queries = q.narrow(2, from, count);
        let (k, v) = (k.narrow(2, seen, keys), v.narrow(2, seen, keys));
        let hidden = attention.hidden(count, keys, past + from - seen, q.device());
        if attention.softcap.is_none() && attention.sinks.is_none() {
            let mask = match attention.bias(heads, (past + from, count), (seen, keys), q.device()) {
                Some(bias) => bias.to_kind(q.kind()).masked_fill(&hidden, f64::NEG_INFINITY).unsqueeze(0), // (1, H, n, L)
                None => hidden.logical_not(),
            };
            return Tensor::scaled_dot_product_attention(
                &queries,
                &k,
                &v,
                Some(mask),
                0.0,
                false,
                attention.scale,
                true,
            );
        }
        assert!(!attention.has_bias(), "no family has a bias of scores beside a cap or sinks");
        // (1, K, G * count, E): the queries of the heads that share a key head follow each other.
        let grouped = queries.reshape([1, k.size()[1], -1, size]);
        let mask = Tensor::zeros(hidden.size(), (Kind::Float, q.device()));
        let mask = mask.masked_fill(&hidden, f64::NEG_INFINITY).repeat([grouped.size()[2] / count, 1]);
        attend_masked(&grouped, &k, &v, count, Some(&mask), &attention).view([1, -1, count, size])
    });
    Tensor::cat(&bands.collect::<Vec<_>>(), 2)
}
