//! Attention with linear biases (ALiBi; Press et al. 2022, arXiv 2108.12409, section 3): each head lowers the score of a key
//! in proportion to its distance, in the place of embeddings of positions. A head's slope is a power of two that its number
//! decides.

use crate::native::upload_slice;
use tch::{Device, Kind, Tensor};

/// The linear bias of a model's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alibi {
    /// Factor on the bias.
    pub factor: f64,
    /// Slopes, positions and their products are rounded to bfloat16, as transformers does in Falcon.
    pub rounded: bool,
}

impl Alibi {
    /// Returns the slopes of H heads: with n the largest power of two up to H, `2^(-8 i / n)` for i = 1 to n,
    /// followed by every second of those of 2 n heads as often as heads are left (the authors' code, BLOOM, Falcon, MPT).
    pub fn slopes(self, heads: i64) -> Vec<f64> {
        let heads = heads as usize;
        let n = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
        let powers = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64));
        powers(n).chain(powers(2 * n).step_by(2)).take(heads).collect()
    }

    /// Returns what is added to the scaled scores of the keys at positions `first` to `first + keys - 1`: (H, keys) float32. It
    /// is the bias less that of the last of these keys: the weights of a query do not change if all its scores change alike.
    pub fn bias(self, heads: i64, first: i64, keys: i64, device: Device) -> Tensor {
        let slopes: Vec<f32> = self.slopes(heads).into_iter().map(|slope| slope as f32).collect();
        let slopes = upload_slice(&slopes, device).unsqueeze(-1); // (H, 1)
        let positions = Tensor::arange_start(first, first + keys, (Kind::Int64, device));
        let bias = match self.rounded {
            true => (slopes.to_kind(Kind::BFloat16) * positions.to_kind(Kind::BFloat16)).to_kind(Kind::Float),
            false => slopes * (positions - (first + keys - 1)).to_kind(Kind::Float),
        };
        (&bias - bias.narrow(1, keys - 1, 1)) * self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of transformers 5.23: build_alibi_tensor of BLOOM, and build_mpt_alibi_tensor, which agree.
    #[test]
    fn slopes_are_those_of_transformers() {
        let near = |found: Vec<f64>, expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        };
        let paper = Alibi { factor: 1.0, rounded: false };
        near(paper.slopes(4), &[0.25, 0.0625, 0.015625, 0.00390625]);
        near(paper.slopes(6), &[0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        near(paper.slopes(1), &[0.00390625]);
        near(paper.slopes(3), &[0.0625, 0.00390625, 0.25]);
    }

    #[test]
    fn a_bias_is_linear_in_the_distance() {
        let alibi = Alibi { factor: 0.5, rounded: false };
        let bias = alibi.bias(2, 7, 4, Device::Cpu);
        let rows = Vec::<f32>::try_from(bias.flatten(0, -1)).unwrap();
        let expected = [0.0625, 0.00390625].map(|slope: f32| [-3.0, -2.0, -1.0, 0.0].map(|d: f32| 0.5 * d * slope));
        assert_eq!(rows, expected.concat());
    }
}
