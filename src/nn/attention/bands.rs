//! Attention composed of plain products, in bands of queries: with a window, a band only reads the keys that its queries
//! see; the scores of the whole sequence never exist. The backward computes the scores of each band again.

use super::{Attention, Gradients, SegmentGroup, merge_heads};
use crate::nn::cuda_attention::{AttentionMemory, AttentionRow};
use tch::{Kind, Tensor};

/// Largest number of scores of all heads and segments in one band; limits temporary memory to about 16 bytes each.
const MAX_BAND_SCORES: i64 = 1 << 22;

/// A band has at least as many queries, however long its sequences are.
const MIN_BAND: i64 = 16;

/// One group of segments as a padded block, with what its backward needs.
pub(super) struct BandedBlock {
    pub group: SegmentGroup,
    q: Tensor,       // (n*K, G, L, E)
    k: Tensor,       // (n*K, L, E)
    v: Tensor,       // (n*K, L, E)
    pub out: Tensor, // (n, H, L, E)
    attention: Attention,
}

/// The queries of one band, and the keys that they see.
struct Band {
    /// First query, and the number of queries B.
    queries: (i64, i64),
    /// First key, and the number of keys J.
    keys: (i64, i64),
}

/// What the scores of a band become: (n*K, G*B, J) each, in float32.
struct Probabilities {
    p: Tensor,
    /// (n*K, G*B, 1) the share of the sinks, if there are any.
    of_sinks: Option<Tensor>,
    /// The hyperbolic tangents of the scores, if there is a cap.
    tanh: Option<Tensor>,
}

impl BandedBlock {
    pub fn new(group: SegmentGroup, q: &Tensor, k: &Tensor, v: &Tensor, attention: Attention) -> Self {
        let (q, k, v) = (group.gather(q), group.gather(k), group.gather(v));
        let (size, shape) = (k.size(), q.size());
        let q = q.reshape([size[0] * size[1], shape[1] / size[1], shape[2], shape[3]]);
        let mut block = Self { group, q, k: merge_heads(&k), v: merge_heads(&v), out: Tensor::new(), attention };
        let parts: Vec<Tensor> = block
            .bands()
            .map(|band| {
                let Probabilities { p, .. } = block.probabilities(&band);
                let out = p.to_kind(v.kind()).bmm(&band.keys_of(&block.v)); // (n*K, G*B, E)
                out.view([size[0] * size[1], -1, band.queries.1, shape[3]])
            })
            .collect();
        block.out = Tensor::cat(&parts, 2).view(shape.as_slice());
        block
    }

    pub fn kv_heads(&self) -> i64 {
        self.k.size()[0] / self.group.count
    }

    fn heads(&self) -> i64 {
        self.kv_heads() * self.q.size()[1]
    }

    fn bands(&self) -> impl Iterator<Item = Band> + use<> {
        let (longest, heads) = (self.group.longest, self.q.size()[0] * self.q.size()[1]);
        let attention = self.attention.clone();
        let reach = attention.window.unwrap_or(longest).min(longest);
        let size = (MAX_BAND_SCORES / (heads * reach).max(1)).clamp(MIN_BAND, longest.max(MIN_BAND));
        (0..longest).step_by(size as usize).map(move |from| {
            let (count, first) = (size.min(longest - from), attention.first_seen(from));
            Band { queries: (from, count), keys: (first, from + count - first) }
        })
    }

    fn probabilities(&self, band: &Band) -> Probabilities {
        let Attention { scale, softcap, .. } = &self.attention;
        let (q, k) = (band.queries_of(&self.q), band.keys_of(&self.k));
        let (batch, (_, queries), (first, keys)) = (k.size()[0], band.queries, band.keys);
        let raw = q.bmm(&k.transpose(1, 2)).to_kind(Kind::Float) * *scale; // (n*K, G*B, J)
        let tanh = softcap.map(|cap| (&raw / cap).tanh());
        let scores = match (&tanh, softcap) {
            (Some(tanh), Some(cap)) => tanh * *cap,
            _ => raw,
        };
        let scores = match self.attention.bias(self.heads(), band.queries, band.keys, q.device()) {
            // (n, K, G, B, J): the heads that share a key head follow each other.
            Some(bias) => {
                let shape = [self.group.count, self.kv_heads(), -1, queries, keys];
                scores.view(shape) + bias.reshape([1, self.kv_heads(), self.q.size()[1], -1, keys])
            }
            None => scores,
        };
        let hidden = self.attention.hidden(queries, keys, band.queries.0 - first, q.device());
        let by_head = [self.group.count, self.kv_heads(), -1, queries, keys];
        let scores = scores.view(by_head).masked_fill(&hidden, f64::NEG_INFINITY);
        let (p, of_sinks) = self.attention.softmax(&scores);
        let of_sinks = of_sinks.map(|share| share.reshape([batch, -1, 1]));
        Probabilities { p: p.reshape([batch, -1, keys]), of_sinks, tanh }
    }

    /// Returns the gradients, given that of the result (n, H, L, E).
    pub fn backward(&self, g: &Tensor) -> Gradients {
        let kind = self.q.kind();
        let g = g.reshape(self.q.size());
        // Sums over bands are in float32: in bfloat16 each addition would round.
        let sums = || Tensor::zeros(self.k.size(), (Kind::Float, self.k.device()));
        let (g_k, g_v) = (sums(), sums());
        let mut g_q = Vec::new();
        let mut g_sinks: Option<Tensor> = None;
        let mut g_bias: Option<Tensor> = None;
        for band in self.bands() {
            let Probabilities { p, of_sinks, tanh } = self.probabilities(&band);
            let (q, k, v) = (band.queries_of(&self.q), band.keys_of(&self.k), band.keys_of(&self.v));
            let g = band.queries_of(&g);
            let mut g_v = band.keys_of(&g_v);
            g_v += p.to_kind(kind).transpose(1, 2).bmm(&g).to_kind(Kind::Float);
            let g_p = g.bmm(&v.transpose(1, 2)).to_kind(Kind::Float);
            let along = (&g_p * &p).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
            if let Some(share) = of_sinks {
                let lost = (share * &along).view([self.group.count, -1, band.queries.1]); // (n, H, B)
                let lost = lost.sum_dim_intlist([0i64, 2].as_slice(), false, Kind::Float);
                g_sinks = Some(g_sinks.map_or_else(|| lost.neg(), |sum| sum - &lost));
            }
            let g_biased = (g_p - along) * p;
            if let Some(bias) = self.attention.relative.as_ref().filter(|bias| bias.table().requires_grad()) {
                let of_segments = g_biased.view([self.group.count, self.heads(), band.queries.1, band.keys.1]);
                let sum = of_segments.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                let g = bias.gradient(&sum, band.queries, band.keys);
                g_bias = Some(g_bias.map_or_else(|| g.shallow_clone(), |sum| sum + &g));
            }
            let mut g_s = g_biased * self.attention.scale;
            if let Some(tanh) = tanh {
                g_s *= tanh.square().neg() + 1.0;
            }
            let g_s = g_s.to_kind(kind);
            g_q.push(g_s.bmm(&k).view([q.size()[0], -1, band.queries.1, q.size()[2]]));
            let mut g_k = band.keys_of(&g_k);
            g_k += g_s.transpose(1, 2).bmm(&q).to_kind(Kind::Float);
        }
        let kv = [self.group.count, self.kv_heads(), self.group.longest, self.k.size()[2]];
        let of_kv = |t: Tensor| t.to_kind(kind).view(kv);
        let of_inputs = [Tensor::cat(&g_q, 2).view(self.out.size().as_slice()), of_kv(g_k), of_kv(g_v)];
        let of_sinks = g_sinks.zip(self.attention.sinks.as_ref()).map(|(g, sinks)| g.to_kind(sinks.kind()));
        Gradients { of_inputs, of_sinks, of_bias: g_bias }
    }
}

impl Band {
    /// Returns the band's queries: (n*K, G, L, E) -> (n*K, G*B, E).
    fn queries_of(&self, t: &Tensor) -> Tensor {
        let s = t.size();
        t.narrow(2, self.queries.0, self.queries.1).reshape([s[0], -1, s[3]])
    }

    /// Returns the band's keys or values, as a view: (n*K, L, E) -> (n*K, J, E).
    fn keys_of(&self, t: &Tensor) -> Tensor {
        t.narrow(1, self.keys.0, self.keys.1)
    }
}

/// Returns the memory of one layer's attention in training.
pub(super) fn memory(row: AttentionRow, attention: &Attention, kind: Kind) -> AttentionMemory {
    let width = kind.elt_size_in_bytes() as u64;
    // q, k, v and result, padded; the gathered result.
    let kept = row.tokens * row.head_size * (3 * row.heads + 2 * row.kv_heads) * width;
    // Scores, probabilities, their gradients and a mask, and the sums of two gradients in float32.
    let scores = (row.tokens * row.longest * row.heads)
        .min(MAX_BAND_SCORES.max(MIN_BAND * row.longest as i64 * row.heads as i64) as u64);
    let sums = 2 * row.tokens * row.head_size * row.kv_heads * 4;
    // Trained biases of all heads, their gradient before it is summed by bucket, and the buckets.
    let biases = if attention.relative.is_some() { 3 * scores * 4 } else { 0 };
    AttentionMemory { kept, temporary: 4 * scores * 4 + sums + biases }
}
