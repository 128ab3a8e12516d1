//! AltUp, alternating updates of residual streams (Baykal et al. 2023, arXiv 2301.13310, algorithm 1): a layer computes one of n
//! streams. All are predicted from each other before, and corrected by what was computed after.

use super::Settings;
use crate::models::blocks::{Norm, NormKind, rounded};
use crate::models::family::Config;
use crate::nn::{Linear, ModuleScope};
use tch::{Kind, Tensor};

/// Prediction and correction of the streams in one layer.
pub struct StreamUpdates {
    norm: Norm,
    router: Linear,
    prediction: Linear,
    correction: Linear,
    active: i64,
    clip: Option<f64>,
    width: i64,
}

impl StreamUpdates {
    /// Builds them at `scope`.
    pub fn build(c: &Config, scope: &ModuleScope, s: &Settings) -> Self {
        let (d, n) = (c.hidden_size, s.streams);
        Self {
            norm: Norm::build(NormKind::Rms, &(scope / "router_norm"), d, c.norm_eps),
            router: (scope / "modality_router").linear(d, n, false),
            prediction: (scope / "prediction_coefs").linear(n, n * n, false),
            correction: (scope / "correction_coefs").linear(n, n, false),
            active: s.active,
            clip: s.clip,
            width: d,
        }
    }

    /// Predicts the streams after the layer from those before it, (T, n, D): each is itself plus a sum of all, with factors
    /// that depend on the active one.
    pub fn predict(&self, streams: &Tensor) -> Tensor {
        let n = streams.size()[1];
        let factors = self.limited(&self.prediction, &self.modalities(&self.active_of(streams)), true);
        streams.baddbmm(&factors.view([-1, n, n]), streams, 1i64, 1i64)
    }

    /// Corrects predicted streams (T, n, D) by what the layer computed for the active one (T, D): each moves by a factor of the
    /// difference.
    pub fn correct(&self, predicted: &Tensor, computed: &Tensor) -> Tensor {
        let factors = self.limited(&self.correction, &self.modalities(computed), false) + 1.0; // (T, n)
        let difference = computed - predicted.select(1, self.active);
        predicted + factors.unsqueeze(2) * difference.unsqueeze(1)
    }

    /// Returns the stream that layers compute: (T, n, D) -> (T, D).
    pub fn active_of(&self, streams: &Tensor) -> Tensor {
        streams.select(1, self.active).contiguous()
    }

    /// Returns what coefficients are made of: (T, D) -> (T, n), in (-1, 1).
    fn modalities(&self, x: &Tensor) -> Tensor {
        let scale = rounded(1.0 / self.width as f64, x.kind());
        let routed = self.router.forward(&(self.norm.forward(x).x * scale));
        routed.to_kind(Kind::Float).tanh().to_kind(x.kind())
    }

    /// Returns coefficients. In training their weights are limited: those of predictions learn beyond the limit, because
    /// transformers limits the weights themselves there.
    fn limited(&self, layer: &Linear, modalities: &Tensor, learns_beyond: bool) -> Tensor {
        match self.clip {
            Some(limit) => layer.forward_limited(modalities, limit, learns_beyond),
            None => layer.forward(modalities),
        }
    }
}
