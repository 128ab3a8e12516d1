//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its extensions to longer contexts.

use crate::native::upload;
use std::f64::consts::{PI, TAU};
use tch::{Device, Kind, Tensor};

/// How frequencies are changed for contexts longer than that of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as in pre-training.
    None,
    /// Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// What positions are divided by.
        factor: f64,
    },
    /// A base that grows with the length of a sequence longer than `original` (dynamic NTK: bloc97 and emozilla 2023).
    ///
    /// The length is that of the sequence itself, not of the packed row or batch, so a full pass over a sequence
    /// gives the same result whatever else is in the row. A decoding step uses the length reached so far, while keys
    /// in the cache keep the rotation of the step that wrote them, as in transformers. For sequences longer than
    /// `original`, decoding with a cache therefore differs from a full pass.
    Dynamic {
        /// The factor of the longest context.
        factor: f64,
        /// The context of pre-training, in tokens.
        original: f64,
    },
    /// Frequencies of long wavelengths are divided by `factor`, those of short ones kept, with a linear ramp in
    /// between (Llama 3.1).
    Llama3 {
        /// What the frequencies of long wavelengths are divided by.
        factor: f64,
        /// Wavelengths above `original / low` tokens are long.
        low: f64,
        /// Wavelengths below `original / high` tokens are short.
        high: f64,
        /// The context of pre-training, in tokens.
        original: f64,
    },
    /// Frequencies of dimensions that rotate fewer than `slow` times within `original` tokens are divided by
    /// `factor`; those of dimensions that rotate more than `fast` times are kept, with a linear ramp in between. cos
    /// and sin are multiplied by `attention` (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// What slow frequencies are divided by.
        factor: f64,
        /// The context of pre-training, in tokens.
        original: f64,
        /// Factor on cos and sin.
        attention: f64,
        /// Rotations above which a frequency is kept.
        fast: f64,
        /// Rotations below which a frequency is divided.
        slow: f64,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
    /// Each frequency divided by a factor of its own: by `short` in sequences of up to `original` tokens, by `long` in
    /// longer ones. cos and sin are multiplied by `attention` (LongRoPE: Ding et al. 2024, arXiv 2402.13753).
    ///
    /// As for `Dynamic`, the length is that of the sequence itself, and in decoding the length reached so far. Whoever
    /// decodes computes a sequence again that outgrows `original` ([`Rope::switch`]).
    Long {
        /// Divisors in short sequences, one for each frequency.
        short: Vec<f64>,
        /// Divisors in long sequences.
        long: Vec<f64>,
        /// The context of pre-training, in tokens.
        original: f64,
        /// Factor on cos and sin.
        attention: f64,
    },
}

/// Computes the rotation angles of positions.
pub struct Rope {
    head_size: i64,
    theta: f64,
    inverse_frequencies: Tensor, // (E/2) float32
    scaling: RopeScaling,
}

impl Rope {
    /// Computes the frequencies for heads of which `head_size` numbers are rotated (E, or fewer), with base `theta`.
    pub fn new(head_size: i64, theta: f64, scaling: &RopeScaling, device: Device) -> Self {
        let plain = |i: i64| theta.powf(-((2 * i) as f64) / head_size as f64);
        let frequencies: Vec<f64> = match *scaling {
            RopeScaling::Long { ref short, .. } => (0..head_size / 2).map(|i| plain(i) / short[i as usize]).collect(),
            RopeScaling::Yarn { factor, original, fast, slow, truncate, .. } => {
                let size = head_size as f64;
                // Returns the dimension that rotates `times` times within the original context.
                let turning = |times: f64| size * (original / (times * TAU)).ln() / (2.0 * theta.ln());
                let (low, high) = (turning(fast), turning(slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(size - 1.0));
                if low == high {
                    high += 0.001;
                }
                let mixed = |i: i64| {
                    let scaled = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(i) * (scaled / factor + 1.0 - scaled)
                };
                (0..head_size / 2).map(mixed).collect()
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                let scaled = |i: i64| {
                    let f = plain(i);
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let keep = (original / wavelength - low) / (high - low);
                        (1.0 - keep) * f / factor + keep * f
                    }
                };
                (0..head_size / 2).map(scaled).collect()
            }
            RopeScaling::Linear { factor } => (0..head_size / 2).map(|i| plain(i) / factor).collect(),
            RopeScaling::None | RopeScaling::Dynamic { .. } => (0..head_size / 2).map(plain).collect(),
        };
        let inverse_frequencies = tensor(&frequencies).to_device(device);
        Self { head_size, theta, inverse_frequencies, scaling: scaling.clone() }
    }

    /// Returns how many numbers of a head are rotated.
    pub fn size(&self) -> i64 {
        self.head_size
    }

    /// Returns the frequencies (E/2) in radians per token, of sequences up to the original context.
    pub fn frequencies(&self) -> Vec<f32> {
        let list = self.inverse_frequencies.to_device(Device::Cpu);
        Vec::try_from(list).expect("float32 numbers in one dimension")
    }

    /// Returns the frequencies (E/2) in a sequence that is one token longer than `length`, which is at least the original context.
    pub fn frequencies_beyond(&self, length: f64) -> Vec<f32> {
        self.frequencies_at(length + 1.0).into_iter().map(|f| f as f32).collect()
    }

    /// Returns the length up to which sequences have other frequencies than beyond it, if there is such a length.
    pub fn switch(&self) -> Option<i64> {
        match self.scaling {
            RopeScaling::Long { original, .. } => Some(original as i64),
            _ => None,
        }
    }

    /// Returns cos and sin for positions (T): (T, 1, E/2) each, computed in float32 and cast to `kind`. The positions
    /// are those of segments with the given `lengths`; with a cache, segment s continues `past[s]` tokens.
    pub fn angles(&self, positions: &Tensor, lengths: &[i64], past: Option<&[i64]>, kind: Kind) -> (Tensor, Tensor) {
        let turns = self.frequencies_by_length(lengths, past);
        let turns = turns.as_ref().unwrap_or(&self.inverse_frequencies);
        let angle = positions.to_kind(Kind::Float).unsqueeze(-1) * turns; // (T, E/2)
        let angle = angle.unsqueeze(1);
        let (cos, sin) = match self.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::Long { attention, .. } if attention != 1.0 => {
                (angle.cos() * attention, angle.sin() * attention)
            }
            _ => (angle.cos(), angle.sin()),
        };
        (cos.to_kind(kind), sin.to_kind(kind))
    }

    /// Returns each token's frequencies (T, E/2) where they depend on the length of its sequence. `None` under another
    /// scaling, or if no segment is longer than the original context.
    fn frequencies_by_length(&self, lengths: &[i64], past: Option<&[i64]>) -> Option<Tensor> {
        let (RopeScaling::Dynamic { original, .. } | RopeScaling::Long { original, .. }) = self.scaling else {
            return None;
        };
        let reached: Vec<i64> = match past {
            Some(past) => lengths.iter().zip(past).map(|(n, p)| n + p).collect(),
            None => lengths.to_vec(),
        };
        if reached.iter().all(|n| *n as f64 <= original) {
            return None;
        }
        let rows: Vec<Tensor> = lengths
            .iter()
            .zip(&reached)
            .filter(|(n, _)| **n > 0)
            .map(|(n, reached)| {
                let turns = self.frequencies_at((*reached as f64).max(original));
                tensor(&turns).unsqueeze(0).expand([*n, self.head_size / 2], false)
            })
            .collect();
        let [rows] = upload([Tensor::cat(&rows, 0)], self.inverse_frequencies.device());
        Some(rows)
    }

    /// Returns the frequencies in a sequence of this length, which is at least the original context.
    fn frequencies_at(&self, length: f64) -> Vec<f64> {
        let size = self.head_size as f64;
        let plain = |theta: f64, i: i64| theta.powf(-((2 * i) as f64) / size);
        let all = 0..self.head_size / 2;
        match &self.scaling {
            RopeScaling::Dynamic { factor, original } => {
                let stretch = factor * length / original - (factor - 1.0);
                let theta = self.theta * stretch.powf(size / (size - 2.0));
                all.map(|i| plain(theta, i)).collect()
            }
            RopeScaling::Long { short, long, original, .. } => {
                let divisors = if length > *original { long } else { short };
                all.map(|i| plain(self.theta, i) / divisors[i as usize]).collect()
            }
            _ => all.map(|i| plain(self.theta, i)).collect(),
        }
    }
}

fn tensor(frequencies: &[f64]) -> Tensor {
    Tensor::from_slice(&frequencies.iter().map(|f| *f as f32).collect::<Vec<_>>())
}
