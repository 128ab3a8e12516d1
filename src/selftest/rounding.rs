//! Tolerances: the largest difference that rounding explains.
//!
//! A tolerance is derived from the number format, the model's depth and what the two sides do differently, not chosen
//! by trial; each carries its reason, which is shown to the user.

use tch::{Device, Kind};

/// The largest difference that a check allows, with its reason.
#[derive(Debug, Clone)]
pub struct Tolerance {
    pub limit: f64,
    pub reason: String,
    pub dtype: &'static str,
}

/// Approximate number of operations in a layer whose results are rounded.
const OPERATIONS_PER_LAYER: f64 = 10.0;

/// What determines the rounding errors of a model: number format, depth and device.
#[derive(Debug, Clone, Copy)]
pub struct Rounding {
    pub kind: Kind,
    pub depth: usize,
    pub device: Device,
}

impl Rounding {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::BFloat16 => "bf16",
            Kind::Half => "f16",
            _ => "f32",
        }
    }

    fn unit(&self) -> f64 {
        match self.kind {
            Kind::BFloat16 => 2f64.powi(-8),
            Kind::Half => 2f64.powi(-11),
            _ => 2f64.powi(-24),
        }
    }

    /// Returns a given limit.
    pub fn fixed(&self, limit: f64, reason: &str) -> Tolerance {
        Tolerance { limit, reason: reason.into(), dtype: self.name() }
    }

    /// Returns zero: both sides run the same operations on the same numbers.
    pub fn exact(&self, why: &str) -> Tolerance {
        Tolerance { limit: 0.0, reason: format!("{why}, so the same bits"), dtype: self.name() }
    }

    /// Returns zero on the CPU. A GPU has kernels that sum in no fixed order, so there the same operations on the same
    /// numbers may differ as gradients do.
    pub fn exact_on_cpu(&self, why: &str) -> Tolerance {
        match self.device {
            Device::Cpu => self.exact(why),
            _ => self.gradients(&format!("{why}, but sums have no fixed order on a GPU")),
        }
    }

    /// Returns the tolerance for gradients that other operations computed. Measured on a model of 135 million
    /// parameters, the worst tensor differed by 44 random walks (see below) in float32 and 1.1 in bf16; a wrong factor
    /// of 1.01 is 10,000 walks in float32. The margin of float32 is large because real models have a few activations
    /// hundreds of times larger than the rest, which late layers cancel again; this amplifies float32's rounding
    /// errors. In bf16 they are noise already and do not grow further.
    pub fn gradients(&self, why: &str) -> Tolerance {
        self.random_walk(why, OPERATIONS_PER_LAYER, if self.kind == Kind::BFloat16 { 3.0 } else { 300.0 })
    }

    /// Returns the tolerance for logits that other operations computed.
    pub fn logits(&self, why: &str) -> Tolerance {
        self.random_walk(why, OPERATIONS_PER_LAYER, if self.kind == Kind::BFloat16 { 4.0 } else { 30.0 })
    }

    /// Returns the tolerance for logits of rounded weights: besides the operations, the weights of a layer's seven
    /// products are rounded on both sides.
    pub fn weights(&self, why: &str) -> Tolerance {
        self.random_walk(why, OPERATIONS_PER_LAYER + 2.0 * 7.0, if self.kind == Kind::BFloat16 { 4.0 } else { 30.0 })
    }

    /// Returns the tolerance for a whole computation in this format compared with float32.
    pub fn precision(&self) -> Tolerance {
        self.random_walk("the whole arithmetic is rounded", OPERATIONS_PER_LAYER, 4.0)
    }

    /// Returns `margin` times a random walk: rounding errors are independent, so n of them add up to sqrt(n) times one.
    fn random_walk(&self, why: &str, roundings: f64, margin: f64) -> Tolerance {
        let walk = self.unit() * (roundings * self.depth as f64).sqrt();
        Tolerance {
            limit: margin * walk,
            dtype: self.name(),
            reason: format!(
                "{why}; {} rounds by {:.0e}, {} layers of that make {walk:.0e}, times {margin} for the worst",
                self.name(),
                self.unit(),
                self.depth,
            ),
        }
    }
}
