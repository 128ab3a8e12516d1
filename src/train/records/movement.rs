//! Measures how far training has moved the trained weights, on a sample of 64 numbers per tensor.
//!
//! If the loss does not fall, the diagnosis depends on it: weights that hardly moved mean a learning rate that is too
//! low, weights that did move mean rows that teach nothing. A sample is sufficient for that and adds no work to a step.

use crate::models::Model;
use crate::runs::facts::WeightMovement;
use tch::{Device, Kind, Tensor};

/// Numbers sampled from each tensor.
const SAMPLE: i64 = 64;

/// A sample of the trained weights at an earlier step.
pub struct MovementProbe {
    step: u64,
    numbers: Vec<Tensor>,
}

/// Returns evenly spaced numbers of every trained tensor, float64 on the CPU. Waits for the device once.
fn sample(model: &Model) -> Vec<Tensor> {
    let few = |t: &Tensor| {
        let flat = t.detach().reshape([-1]);
        let stride = (flat.size()[0] / SAMPLE).max(1);
        flat.slice(0, 0, None, stride).slice(0, 0, SAMPLE, 1)
    };
    let samples: Vec<Tensor> = model.params().trainable().map(|p| few(&p.tensor)).collect();
    let sizes: Vec<i64> = samples.iter().map(|t| t.size()[0]).collect();
    let all = Tensor::cat(&samples, 0).to_device(Device::Cpu).to_kind(Kind::Double);
    all.split_with_sizes(&sizes, 0)
}

impl MovementProbe {
    /// Samples the weights as they are at `step`.
    pub fn new(model: &Model, step: u64) -> Self {
        Self { step, numbers: sample(model) }
    }

    /// Returns how far the sampled weights have moved between the probe's step and `step`.
    pub fn movement(&self, model: &Model, step: u64) -> WeightMovement {
        let square = |t: &Tensor| (t * t).sum(Kind::Double).double_value(&[]);
        let (mut moved, mut size, mut unmoved) = (0.0, 0.0, 0);
        for (then, now) in self.numbers.iter().zip(sample(model)) {
            let change = square(&(&now - then));
            unmoved += usize::from(change == 0.0);
            moved += change;
            size += square(then).max(square(&now));
        }
        let relative = if size > 0.0 { (moved / size).sqrt() } else { 0.0 };
        WeightMovement { from_step: self.step, to_step: step, tensors: self.numbers.len(), unmoved, relative }
    }
}
