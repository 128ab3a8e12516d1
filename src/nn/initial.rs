//! Initial weights of an untrained model, as transformers samples them: weights from a normal distribution, biases 0,
//! norms 1.
//!
//! Each parameter has its own random stream, named after it. A value depends only on the seed, the parameter's name
//! and the value's index in it, not on the order in which parameters are created or on the number of threads.

use super::params::LayerKind;
use super::weights::ParamMapping;
use crate::rng;
use rand::RngExt;
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Seed and spread of an untrained model's weights.
pub struct InitialWeights {
    /// Determines all values.
    pub seed: u64,
    /// Standard deviation of weights (`initializer_range` in config.json).
    pub std: f64,
    /// Maps a tensor's name in a checkpoint to the model's parameter (`Family::map_param`).
    pub map_param: fn(&str) -> Option<ParamMapping>,
}

/// Values per random stream: a parameter's values are sampled in blocks of this size, in parallel.
const STREAM_BLOCK: usize = 1 << 16;

impl InitialWeights {
    pub(super) fn transposed(&self, name: &str) -> bool {
        (self.map_param)(name).is_some_and(|p| p.transposed)
    }

    /// Returns the float32 values of a parameter; `spread` is a factor on the usual standard deviation.
    pub(super) fn sample(&self, name: &str, layer: LayerKind, shape: &[i64], spread: f64) -> Tensor {
        let options = (Kind::Float, tch::Device::Cpu);
        if name.ends_with(".bias") {
            return Tensor::zeros(shape, options);
        }
        if layer == LayerKind::Norm {
            return Tensor::ones(shape, options);
        }
        let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
        let (purpose, deviation) = (format!("initial {name}"), self.std * spread);
        values.par_chunks_mut(STREAM_BLOCK).enumerate().for_each(|(i, block)| {
            let mut rng = rng::stream(self.seed, &purpose, i as u64);
            // Box and Muller 1958: two normal numbers from two uniform ones.
            for pair in block.chunks_mut(2) {
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * deviation;
                let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
                pair[0] = (radius * cos) as f32;
                if let Some(second) = pair.get_mut(1) {
                    *second = (radius * sin) as f32;
                }
            }
        });
        Tensor::from_slice(&values).view(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(name: &str, seed: u64) -> Tensor {
        InitialWeights { seed, std: 0.02, map_param: |_| None }.sample(name, LayerKind::Linear, &[401, 331], 0.5)
    }

    #[test]
    fn values_are_normal_and_their_own() {
        let t = draw("a.weight", 1);
        let number = |t: Tensor| t.double_value(&[]);
        assert!(number(t.mean(Kind::Double)).abs() < 1e-4);
        assert!((number(t.std(true)) / 0.01 - 1.0).abs() < 0.01);
        let beyond = number(t.abs().gt(0.02).to_kind(Kind::Double).mean(Kind::Double));
        assert!((beyond - 0.0455).abs() < 0.003, "{beyond} beyond two standard deviations");
        assert!(t.equal(&draw("a.weight", 1)));
        assert!(!t.equal(&draw("b.weight", 1)) && !t.equal(&draw("a.weight", 2)));
        // Two blocks of values differ.
        let flat = t.flatten(0, -1);
        assert!(!flat.narrow(0, 0, 1000).equal(&flat.narrow(0, STREAM_BLOCK as i64, 1000)));
    }
}
