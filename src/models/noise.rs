//! Noise on the input embeddings in training.

use crate::native::upload_slice;
use crate::nn::randomness;
use tch::{Kind, Tensor};

/// Noise on the input embeddings in training (NEFTune, Jain et al. 2023, arXiv 2310.05914): uniform in (-1, 1), times
/// `alpha / sqrt(L D)` for a segment of L tokens and width D. It depends on the seed alone, so that replayed layers
/// see the same noise.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingNoise {
    /// The size of the noise.
    pub alpha: f64,
    /// Random seed; the noise depends on nothing else.
    pub seed: u64,
}

impl EmbeddingNoise {
    /// Returns the embeddings x (T, D) of segments with these lengths, with noise added.
    pub(super) fn add_to(self, x: &Tensor, lengths: &[i64]) -> Tensor {
        let size = |n: i64| (self.alpha / ((n * x.size()[1]) as f64).sqrt()) as f32;
        let sizes: Vec<f32> = lengths.iter().flat_map(|&n| std::iter::repeat_n(size(n), n as usize)).collect();
        let options = (Kind::Float, x.device());
        let noise =
            randomness::with_seed(x.device(), self.seed, || Tensor::empty(x.size(), options).uniform_(-1.0, 1.0));
        let noise = noise * upload_slice(&sizes, x.device()).unsqueeze(-1);
        x + noise.to_kind(x.kind())
    }
}
