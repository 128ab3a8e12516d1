//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its ways of reaching further.

use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// How frequencies are changed for contexts longer than the pre-training's.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    None,
    /// Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        factor: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1).
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

/// Angles by position.
pub struct Rope {
    inverse_frequencies: Tensor, // (E/2) float32
}

impl Rope {
    pub fn new(head_size: i64, theta: f64, scaling: &Scaling, device: Device) -> Self {
        let frequency = |i: i64| {
            let f = 1.0 / theta.powf((2 * i) as f64 / head_size as f64);
            match *scaling {
                Scaling::None => f,
                Scaling::Linear { factor } => f / factor,
                Scaling::Llama3 { factor, low, high, original } => {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let keep = (original / wavelength - low) / (high - low);
                        (1.0 - keep) * f / factor + keep * f
                    }
                }
            }
        };
        let frequencies: Vec<f32> = (0..head_size / 2).map(|i| frequency(i) as f32).collect();
        Self { inverse_frequencies: Tensor::from_slice(&frequencies).to_device(device) }
    }

    /// cos and sin for positions (T): (T, 1, E/2) each, computed in float32.
    pub fn angles(&self, positions: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let angle = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inverse_frequencies; // (T, E/2)
        let angle = angle.unsqueeze(1);
        (angle.cos().to_kind(kind), angle.sin().to_kind(kind))
    }
}
