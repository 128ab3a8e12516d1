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

/// Returns evenly spaced numbers of every trained tensor, one tensor after the other: (N) float64 on the model's device.
pub fn sample(model: &Model) -> Tensor {
    let samples: Vec<Tensor> = model.params().trained_in_run().map(|p| few(&p.tensor)).collect();
    Tensor::cat(&samples, 0).to_kind(Kind::Double)
}

fn few(t: &Tensor) -> Tensor {
    let flat = t.detach().reshape([-1]);
    let stride = (flat.size()[0] / SAMPLE).max(1);
    flat.slice(0, 0, None, stride).slice(0, 0, SAMPLE, 1)
}

/// Splits a sample into the numbers of each tensor, on the CPU.
fn split(sample: &Tensor, model: &Model) -> Vec<Tensor> {
    let sizes: Vec<i64> = model.params().trained_in_run().map(|p| few(&p.tensor).size()[0]).collect();
    sample.to_device(Device::Cpu).split_with_sizes(&sizes, 0)
}

impl MovementProbe {
    /// Samples the weights as they are at `step`.
    pub fn new(model: &Model, step: u64) -> Self {
        Self { step, numbers: split(&sample(model), model) }
    }

    /// Returns how far the sampled weights have moved between the probe's step and `step`; `now` is their sample there.
    pub fn movement(&self, model: &Model, now: &Tensor, step: u64) -> WeightMovement {
        let square = |t: &Tensor| (t * t).sum(Kind::Double).double_value(&[]);
        let (mut moved, mut size, mut unmoved) = (0.0, 0.0, 0);
        for (then, now) in self.numbers.iter().zip(split(now, model)) {
            let change = square(&(&now - then));
            unmoved += usize::from(change == 0.0);
            moved += change;
            size += square(then).max(square(&now));
        }
        let relative = if size > 0.0 { (moved / size).sqrt() } else { 0.0 };
        WeightMovement { from_step: self.step, to_step: step, tensors: self.numbers.len(), unmoved, relative }
    }
}
