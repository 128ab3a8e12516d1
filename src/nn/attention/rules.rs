//! What a layer's attention computes: the scale and cap of its scores, which keys a query sees, and its sinks.

use super::alibi::Alibi;
use super::relative::RelativeBias;
use crate::native::upload;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Settings of a layer's attention, which is causal: `softmax(cap(q k^T * scale) + bias) v`. A family makes one for each of its
/// layers and passes it along with queries and keys. Attention that these settings cannot express is refused when
/// config.json is read.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Factor on the products of queries and keys.
    pub scale: f64,
    /// Number of tokens that a query sees, itself included: the last ones (Beltagy et al. 2020, arXiv 2004.05150). `None`:
    /// all before it.
    pub window: Option<i64>,
    /// Bound c of the scores, which become `c tanh(score / c)` (Gemma 2, arXiv 2408.00118). `None`: they have no bound.
    pub softcap: Option<f64>,
    /// Bias of the scores by the distance of the key; `None`: they have none.
    pub alibi: Option<Alibi>,
    /// Trained biases of the scores by the distance of the key; `None`: there are none.
    pub relative: Option<Rc<RelativeBias>>,
    /// (H) a learned logit for each query head, which is one more score in the sum of its softmax and has no value: the weights
    /// of the keys add up to less than 1 (gpt-oss; sinks: Xiao et al. 2023, arXiv 2309.17453). `None`: there are none.
    pub sinks: Option<Rc<Tensor>>,
}

impl Attention {
    /// Returns plain causal attention with this scale.
    pub fn causal(scale: f64) -> Self {
        Self { scale, window: None, softcap: None, alibi: None, relative: None, sinks: None }
    }

    /// Returns settings that give the same results for sequences of at most `longest` tokens: a window that they do not
    /// leave is no window.
    pub fn within(&self, longest: i64) -> Self {
        Self { window: self.window.filter(|window| *window < longest), ..self.clone() }
    }

    /// Returns true if neither a window nor a cap nor a bias changes a score or hides a key. There may be sinks: they change a
    /// result by a factor, which follows from the sum of the exponentials of the scores ([`with_sinks`](Self::with_sinks)).
    pub fn has_plain_scores(&self) -> bool {
        self.window.is_none() && !self.changes_scores()
    }

    /// Returns true if scores are capped or biased, which libtorch's and our kernels do not compute.
    pub fn changes_scores(&self) -> bool {
        self.softcap.is_some() || self.has_bias()
    }

    /// Returns true if something is added to scores by the distance of the key.
    pub fn has_bias(&self) -> bool {
        self.alibi.is_some() || self.relative.is_some()
    }

    /// Returns true if kernels that give no more than the result can compute it: there are neither sinks nor capped or biased scores.
    pub fn has_plain_softmax(&self) -> bool {
        !self.changes_scores() && self.sinks.is_none()
    }

    /// Returns the softmax of the scores over the keys, (…, H, n, L) in float32, and the sinks' share of it, (…, H, n, 1),
    /// if there are sinks. The heads may be split: (…, K, G, n, L).
    pub fn softmax(&self, scores: &Tensor) -> (Tensor, Option<Tensor>) {
        let Some(sinks) = &self.sinks else { return (scores.softmax(-1, Kind::Float), None) };
        let size = scores.size();
        let (rank, keys) = (size.len(), size[size.len() - 1]);
        let own = sinks.to_kind(Kind::Float);
        let own = if size[rank - 3] == own.size()[0] { own } else { own.view([-1, size[rank - 3]]) };
        let mut one = size.clone();
        one[rank - 1] = 1;
        let with = Tensor::cat(&[scores, &own.unsqueeze(-1).unsqueeze(-1).expand(one, false)], -1);
        let shares = with.softmax(-1, Kind::Float);
        (shares.narrow(-1, 0, keys), Some(shares.narrow(-1, keys, 1)))
    }

    /// Adds the sinks to attention that was computed without them: the results `out` (n, H, L, E) and the logarithms `lse`
    /// (n, H, L) of the sums of the exponentials of the scores. Returns both with the sinks.
    pub fn with_sinks(&self, out: Tensor, lse: Tensor) -> (Tensor, Tensor) {
        let Some(sinks) = &self.sinks else { return (out, lse) };
        let own = sinks.to_kind(Kind::Float).view([1, -1, 1]);
        let all = lse.logaddexp(&own);
        let factor = (&lse - &all).exp().unsqueeze(-1);
        ((&out * factor).to_kind(out.kind()), all)
    }

    /// Returns the scores, already scaled, within their bound.
    pub fn cap(&self, scores: Tensor) -> Tensor {
        match self.softcap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        }
    }

    /// Returns what is added to the scores, in front of the mask, of the queries from position `from` on, for the keys from
    /// position `first` on: (H, 1 or queries, keys) float32. `None` without a bias.
    pub fn bias(
        &self,
        heads: i64,
        (from, queries): (i64, i64),
        (first, keys): (i64, i64),
        device: Device,
    ) -> Option<Tensor> {
        match &self.relative {
            Some(bias) => Some(bias.of_positions((from, queries), (first, keys))),
            None => Some(self.alibi?.bias(heads, first, keys, device).unsqueeze(1)),
        }
    }

    /// Returns the same for the new token of each of several sequences, which follows its earlier ones (`earlier` of each): (S or
    /// 1, H, keys) for the first `keys` of all tokens. `None` without a bias.
    pub fn bias_of_next(&self, heads: i64, earlier: &[i64], keys: i64, device: Device) -> Option<Tensor> {
        let Some(bias) = &self.relative else {
            return Some(self.alibi?.bias(heads, 0, keys, device).unsqueeze(0));
        };
        let [earlier] = upload([Tensor::from_slice(earlier)], device);
        let distances = earlier.unsqueeze(1) - Tensor::arange(keys, (Kind::Int64, device)).unsqueeze(0); // (S, keys)
        Some(bias.of_distances(&distances).transpose(0, 1))
    }

    /// Returns which keys are hidden from which queries: (queries, keys), true where hidden. Key 0 is at position 0, the
    /// first query at position `past`.
    pub fn hidden(&self, queries: i64, keys: i64, past: i64, device: Device) -> Tensor {
        let ones = Tensor::ones([queries, keys], (Kind::Bool, device));
        let later = ones.triu(past + 1);
        match self.window {
            Some(window) => later.logical_or(&ones.tril(past - window)),
            None => later,
        }
    }

    /// Returns the first position that a query at this position sees.
    pub fn first_seen(&self, position: i64) -> i64 {
        self.window.map_or(0, |window| (position + 1 - window).max(0))
    }
}
