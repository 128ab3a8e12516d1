//! Sinusoidal vectors of positions, which are added to those of tokens (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).

use tch::{Device, Kind, Tensor};

/// The vectors of positions of a model of width D: `sin(p / 10000^(2i/D))` at place 2i, the cosine of the same at 2i + 1.
pub struct SinusoidalPositions {
    /// (ceil(D / 2)) float64 in radians per token.
    frequencies: Tensor,
    width: i64,
}

impl SinusoidalPositions {
    /// Makes the vectors of a model of this width.
    pub fn new(width: i64, device: Device) -> Self {
        let steps =
            Tensor::arange((width + 1) / 2, (Kind::Double, Device::Cpu)) * (-2.0 / width as f64 * 10000f64.ln());
        Self { frequencies: steps.exp().to_device(device), width }
    }

    /// Returns the vectors of positions (T) in dtype `kind`: (T, D). Angles are computed in float64, because float32 would lose
    /// digits of those of late positions.
    pub fn of(&self, positions: &Tensor, kind: Kind) -> Tensor {
        let angles = positions.to_kind(Kind::Double).unsqueeze(-1) * &self.frequencies; // (T, D / 2)
        Tensor::stack(&[angles.sin(), angles.cos()], -1).flatten(1, 2).narrow(1, 0, self.width).to_kind(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_those_of_the_paper() {
        for width in [6, 7] {
            let positions = Tensor::from_slice(&[0i64, 1, 5, 900]);
            let found = SinusoidalPositions::new(width, Device::Cpu).of(&positions, Kind::Float);
            assert_eq!(found.size(), [4, width]);
            for (row, p) in [0.0, 1.0, 5.0, 900.0f64].into_iter().enumerate() {
                for place in 0..width {
                    let angle = p / 10000f64.powf((place - place % 2) as f64 / width as f64);
                    let expected = if place % 2 == 0 { angle.sin() } else { angle.cos() };
                    assert!((found.double_value(&[row as i64, place]) - expected).abs() < 1e-6, "{p} {place}");
                }
            }
        }
    }
}
