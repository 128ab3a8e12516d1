//! A factor on the loss, so that gradients in float16 are neither rounded to zero nor too large (Micikevicius et al. 2018,
//! arXiv 1710.03740, section 3.2).
//!
//! float16 ends at 65,504 and loses numbers below 6e-8. The factor, a power of two, adapts as torch's GradScaler does:
//! it is halved when a step is not finite, and doubled after [`GROWTH_INTERVAL`] steps in a row that were. Factor and
//! count stay on the device, where it is known whether a step was finite.

use tch::{Device, Kind, Tensor};

/// The factor of the first step.
const FIRST: f64 = 65536.0;
/// Finite steps in a row after which the factor is doubled.
const GROWTH_INTERVAL: i64 = 2000;

/// The factor with what it depends on.
pub struct LossScale {
    /// The factor: float32, a scalar.
    factor: Tensor,
    /// Finite steps since the factor changed: int32, a scalar.
    finite: Tensor,
}

impl LossScale {
    /// Returns the factor of a run's first step.
    pub fn new(device: Device) -> Self {
        let factor = Tensor::full([], FIRST, (Kind::Float, device));
        Self { factor, finite: Tensor::zeros([], (Kind::Int, device)) }
    }

    /// Returns the factor, a float32 scalar on the device. It follows later changes.
    pub fn factor(&self) -> &Tensor {
        &self.factor
    }

    /// Returns the tensors that a checkpoint stores, by name.
    pub fn state(&self) -> [(&'static str, &Tensor); 2] {
        [("loss_scale", &self.factor), ("loss_scale.finite_steps", &self.finite)]
    }

    /// Adapts the factor after a step; `not_finite`: 1 or 0, a float32 scalar on the device. The factor stays at least 1:
    /// what overflows without a factor is not its fault.
    pub fn adapt(&self, not_finite: &Tensor) {
        let (mut factor, finite) = (self.factor.shallow_clone(), self.finite.shallow_clone());
        let _ = factor.internal_amp_update_scale_(&finite, not_finite, 2.0, 0.5, GROWTH_INTERVAL);
        let _ = factor.clamp_min_(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_grows_after_finite_steps_and_halves_after_others() {
        let scale = LossScale::new(Device::Cpu);
        let (good, bad) = (Tensor::from(0.0f32), Tensor::from(1.0f32));
        let now = || (scale.factor.double_value(&[]), scale.finite.int64_value(&[]));
        scale.adapt(&good);
        assert_eq!(now(), (65536.0, 1));
        scale.adapt(&bad);
        assert_eq!(now(), (32768.0, 0), "the count starts anew");
        (0..GROWTH_INTERVAL - 1).for_each(|_| scale.adapt(&good));
        assert_eq!(now(), (32768.0, GROWTH_INTERVAL - 1));
        scale.adapt(&good);
        assert_eq!(now(), (65536.0, 0));
        (0..40).for_each(|_| scale.adapt(&bad));
        assert_eq!(now(), (1.0, 0));
    }
}
