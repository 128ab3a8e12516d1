//! What a layer's attention computes: the scale and cap of its scores, and which keys a query sees.

use super::alibi::Alibi;
use tch::{Device, Kind, Tensor};

/// Settings of a layer's attention, which is causal: `softmax(cap(q k^T * scale) + bias) v`. A family makes one for each of its
/// layers and passes it along with queries and keys. Attention that these settings cannot express is refused when
/// config.json is read.
#[derive(Debug, Clone, Copy, PartialEq)]
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
}

impl Attention {
    /// Returns plain causal attention with this scale.
    pub fn causal(scale: f64) -> Self {
        Self { scale, window: None, softcap: None, alibi: None }
    }

    /// Returns settings that give the same results for sequences of at most `longest` tokens: a window that they do not
    /// leave is no window.
    pub fn within(self, longest: i64) -> Self {
        Self { window: self.window.filter(|window| *window < longest), ..self }
    }

    /// Returns true if neither a window nor a change of the scores is left.
    pub fn is_plain(self) -> bool {
        self.window.is_none() && !self.changes_scores()
    }

    /// Returns true if scores are capped or biased, which libtorch's and our kernels do not compute.
    pub fn changes_scores(self) -> bool {
        self.softcap.is_some() || self.alibi.is_some()
    }

    /// Returns the scores, already scaled, within their bound.
    pub fn cap(self, scores: Tensor) -> Tensor {
        match self.softcap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        }
    }

    /// Returns what is added to the scores of all queries, in front of the mask, for the keys at positions `first` to
    /// `first + keys - 1`: (H, 1, keys) float32. `None` without a bias.
    pub fn bias(self, heads: i64, first: i64, keys: i64, device: Device) -> Option<Tensor> {
        Some(self.alibi?.bias(heads, first, keys, device).unsqueeze(1))
    }

    /// Returns which keys are hidden from which queries: (queries, keys), true where hidden. Key 0 is at position 0, the
    /// first query at position `past`.
    pub fn hidden(self, queries: i64, keys: i64, past: i64, device: Device) -> Tensor {
        let ones = Tensor::ones([queries, keys], (Kind::Bool, device));
        let later = ones.triu(past + 1);
        match self.window {
            Some(window) => later.logical_or(&ones.tril(past - window)),
            None => later,
        }
    }

    /// Returns the first position that a query at this position sees.
    pub fn first_seen(self, position: i64) -> i64 {
        self.window.map_or(0, |window| (position + 1 - window).max(0))
    }
}
