//! How far training has moved what it trains, measured on a few numbers of each tensor.
//!
//! The doctor tells a rate that is too low from rows that teach nothing by it. A sample is enough for that, costs
//! next to nothing, and nothing at all in the step.

use crate::models::Model;
use crate::runs::facts::Movement;
use tch::{Device, Kind, Tensor};

/// Numbers looked at in each tensor.
const SAMPLE: i64 = 64;

/// The trained numbers as they were.
pub struct Probe {
    step: u64,
    numbers: Vec<Tensor>,
}

/// Evenly spaced numbers of every trained tensor.
fn sample(model: &Model) -> Vec<Tensor> {
    let few = |t: &Tensor| {
        let flat = t.detach().reshape([-1]);
        let stride = (flat.size()[0] / SAMPLE).max(1);
        flat.slice(0, 0, None, stride).slice(0, 0, SAMPLE, 1).to_device(Device::Cpu).to_kind(Kind::Double).copy()
    };
    model.params().trainable().map(|p| few(&p.tensor)).collect()
}

impl Probe {
    /// Remembers the numbers of `step`.
    pub fn new(model: &Model, step: u64) -> Self {
        Self { step, numbers: sample(model) }
    }

    /// How far they have moved until `step`.
    pub fn movement(&self, model: &Model, step: u64) -> Movement {
        let square = |t: &Tensor| (t * t).sum(Kind::Double).double_value(&[]);
        let (mut moved, mut size, mut unmoved) = (0.0, 0.0, 0);
        for (then, now) in self.numbers.iter().zip(sample(model)) {
            let change = square(&(&now - then));
            unmoved += usize::from(change == 0.0);
            moved += change;
            size += square(then).max(square(&now));
        }
        let relative = if size > 0.0 { (moved / size).sqrt() } else { 0.0 };
        Movement { from_step: self.step, to_step: step, tensors: self.numbers.len(), unmoved, relative }
    }
}
